"""`make faults`: hundreds of kills on one service after another, and one table of what was done and checked."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.faults.bench import Tally, memory_folder
from tests.faults.disk import NoDiskError
from tests.faults.parts import PARTS

CHECKED = (
    "every accepted request is listed, completed once, with one certificate that verifies",
    "every person of whom the folder held images is completed as erased, as many images as were counted before",
    "every certificate holds by an independent check and by `expunge verify` in a process of its own",
    "certificate follows certificate without a gap: weights, data, older versions destroyed once",
    "every prediction came from the first model or from one whose passed audit the log had before",
    "nothing older than a completed request's model answered, and the latest certificate is about what answers",
    "the person's id, tag, file names, files and pixel rows are in no file of the home, of TMPDIR or of the store",
)


def main() -> int:
    """Run the parts; 1 if anything promised was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--share", type=float, default=1.0, help="of the full run's kills")
    parser.add_argument("--only", choices=list(PARTS), action="append", help="parts; default: all")
    parser.add_argument("--folder", type=Path, default=memory_folder())
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of the blocks that stop what was started
    total, began, left_out, parts = Tally(), time.monotonic(), [], {}
    for name in options.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="faults-", dir=options.folder, ignore_cleanup_errors=True) as folder:
            part_began = time.monotonic()
            try:
                tally = PARTS[name](Path(folder), options.seed, options.share)
            except NoDiskError as error:
                left_out.append(str(error))
                continue
            parts[name] = {
                "faults": tally.n_kills, "minutes": round((time.monotonic() - part_began) / 60, 1),
                "requests": tally.accepted, "violations": len(tally.violations),
            }  # fmt: skip
            print(f"{name}: {', '.join(f'{number} {what}' for what, number in parts[name].items())}", flush=True)
            for violation in tally.violations:
                print(f"  {violation}", flush=True)
            total = total.plus(tally)
            if options.json:  # after each part: a run that is cut off has the ones before
                done = report(total, time.monotonic() - began, options.seed) | {"parts": parts}
                options.json.write_text(json.dumps(done, indent=1) + "\n")
    print(table(total, time.monotonic() - began, left_out))
    return 1 if total.violations else 0


def by_place(kills: Counter[str]) -> dict[str, int]:
    """Kills of the worker at fail points by stage, everything else as it is."""
    places: Counter[str] = Counter()
    for place, count in kills.items():
        stage = (
            place.partition(".")[0] if "." in place else place.replace("worker at completed", "worker at completing")
        )
        places[stage] += count
    return dict(places)


def table(tally: Tally, seconds: float, left_out: list[str]) -> str:
    """The table for people."""
    places = by_place(tally.kills)
    width = max(map(len, places))
    lines = ["", *(f"{place:<{width}}  {count:>4}" for place, count in places.items())]
    lines += [f"{'in all':<{width}}  {tally.n_kills:>4}   in {seconds / 60:.1f} minutes", ""]
    lines += [
        f"{tally.accepted} requests accepted, {tally.completed} completed; {tally.repeated_calls} calls repeated, "
        f"{tally.approved} approvals after a fault",
        f"{tally.n_predictions} predictions looked at",
        "checked each time:",
        *(f"  {sentence}" for sentence in CHECKED),
        *left_out,
        "",
        f"violations: {len(tally.violations) or 'none'}",
        *(f"  {count} × {violation}" for violation, count in Counter(tally.violations).items()),
    ]
    return "\n".join(lines)


def report(tally: Tally, seconds: float, seed: int) -> dict[str, Any]:
    """The same for machines."""
    return {
        "kills": dict(tally.kills), "n_kills": tally.n_kills, "accepted": tally.accepted, "completed": tally.completed,
        "repeated_calls": tally.repeated_calls, "approved": tally.approved, "n_predictions": tally.n_predictions,
        "violations": tally.violations, "seconds": seconds, "seed": seed, "machine": platform.platform(),
        "n_cores": os.cpu_count(),
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
