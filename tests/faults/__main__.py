"""`make faults`: hundreds of kills on one service after another, and one table of what was done and checked."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.fail_points import FAIL_POINTS, OUTSIDE_RUNS
from tests.faults import scenarios
from tests.faults.bench import Bench, Tally, memory_folder
from tests.faults.disk import NoDiskError, small_disk
from tests.postgres import PostgresServer

CHECKED = (
    "every accepted request is listed, completed once, with one certificate that verifies",
    "every prediction came from the first model or from one whose passed audit the log had before",
    "nothing older than a completed request's model answered",
    "the person's id, file names, files and pixel rows are in no file of the home or of TMPDIR",
)


def points(folder: Path, seed: int, share: float) -> Tally:
    """The worker at every point, twice, and at some of them a serving process with it."""
    rng = random.Random(seed)
    with Bench.running(folder, n_subjects=40, seed=seed) as bench:
        for _ in range(max(1, round(2 * share))):
            scenarios.every_point(bench)
        for _ in range(max(1, round(2 * share))):
            some = sorted(rng.sample(FAIL_POINTS, max(3, round(12 * share))), key=FAIL_POINTS.index)
            scenarios.both_at_points(bench, some)
        return bench.conclude()


def random_times(folder: Path, seed: int, share: float) -> Tally:
    """The worker at times drawn evenly."""
    with Bench.running(folder, n_subjects=100, seed=seed) as bench:
        scenarios.random_times(bench, round(60 * share), longest_seconds=3.0)
        return bench.conclude()


def serving(folder: Path, seed: int, share: float) -> Tally:
    """Serving processes right after the receipt, one and all of them, and while requests are filed."""
    with Bench.running(folder, n_subjects=60, seed=seed) as bench:
        scenarios.after_the_receipt(bench, max(1, round(4 * share)))
        scenarios.after_the_receipt(bench, max(1, round(2 * share)), n_api=2)
        scenarios.during_the_filing(bench, max(1, round(5 * share)))
        return bench.conclude()


def clocks(folder: Path, seed: int, share: float) -> Tally:
    """The worker's clock an hour back, and two."""
    some = ("unlearning.references", "deploying.staged", "purging.marked", "completing.signed")
    with Bench.running(folder, n_subjects=40, seed=seed) as bench:
        scenarios.clock_set_back(bench, 3600.0, some[: max(1, round(len(some) * share))])
        return bench.conclude()


def full_disks(folder: Path, seed: int, share: float) -> Tally:
    """No room for weights, bank, verdict, certificate."""
    with small_disk(folder / "disk") as disk, Bench.running(disk.folder, n_subjects=40, seed=seed) as bench:
        for point in list(scenarios.FULL_BEFORE)[: max(1, round(len(scenarios.FULL_BEFORE) * share))]:
            scenarios.full_disk(bench, disk, point)
        return bench.conclude()


def commands(folder: Path, seed: int, share: float) -> Tally:
    """Training, key rotation and building at every point, each before somebody is erased."""
    with Bench.running(folder, n_subjects=40, seed=seed) as bench:
        scenarios.left_behind(bench, OUTSIDE_RUNS[:: max(1, round(1 / share))])
        return bench.conclude()


def databases(folder: Path, seed: int, share: float) -> Tally:
    """PostgreSQL: restarts in the middle, and the worker at some points."""
    some = ("unlearning.references", "auditing.signed", "deploying.pointer", "purging.columns", "completed")
    with PostgresServer.started() as server:
        urls = {"database_url": server.create_database(), "workflow_database_url": server.create_database()}
        with Bench.running(folder, n_subjects=40, seed=seed, **urls) as bench:
            scenarios.every_point(bench, FAIL_POINTS[:: max(1, round(4 / share))])
            scenarios.database_restarts(bench, server, some[: max(1, round(len(some) * share))])
            return bench.conclude()


PARTS: dict[str, Callable[[Path, int, float], Tally]] = {
    "points": points, "random": random_times, "serving": serving, "clock": clocks, "disk": full_disks,
    "commands": commands, "postgres": databases,
}  # fmt: skip


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
    total, began, left_out = Tally(), time.monotonic(), []
    for name in options.only or PARTS:
        with tempfile.TemporaryDirectory(prefix="faults-", dir=options.folder, ignore_cleanup_errors=True) as folder:
            part_began = time.monotonic()
            try:
                tally = PARTS[name](Path(folder), options.seed, options.share)
            except NoDiskError as error:
                left_out.append(str(error))
                continue
            print(f"{name}: {tally.n_kills} faults in {time.monotonic() - part_began:.0f} s", flush=True)
            total = total.plus(tally)
    print(table(total, time.monotonic() - began, left_out))
    if options.json:
        options.json.write_text(json.dumps(report(total, time.monotonic() - began, options.seed), indent=1) + "\n")
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
