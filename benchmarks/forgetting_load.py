"""Predictions while the worker forgets somebody on the same machine, beside predictions while it rests.

    python benchmarks/forgetting_load.py [--quick | --to-the-end] [--json FILE]

The service and the worker as they are started in the container, on the AT&T faces and their recipe, by the strict
policy. One person asks to be erased, no bank was built ahead: the run trains reference models, unlearns, audits.
Meanwhile wrk sends the test images over 16 connections, in pairs of bursts: in one the worker and its children are
frozen (SIGSTOP), in the other they run. Between the pairs they run alone, for beside a saturated service trainings
pause, and the run should come to all its stages; what the worker got of the processor is printed. Half of the pairs
are taken in the training of references, half from the first rung of the ladder on, in unlearning and audit.

`--to-the-end` asks something else: whether an erasure ends beside a load that never lets up. By the policy `standard`,
with no bank built ahead and the deadline far away, wrk sends all the time until the request has come to its end.

Ratios are of pairs; printed are their median and the interval of the middle 90 % of medians of resampled pairs.
Needs wrk (Debian's package).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# The project's root instead of this folder: `audit.py` here would hide the package `audit`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import httpx  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
from rich.console import Console  # noqa: E402

from benchmarks.loads.figures import machine, ratio, verdict  # noqa: E402
from benchmarks.loads.homes import serving, settings_of  # noqa: E402
from benchmarks.loads.wrk import Burst, Call, burst, need_wrk, write_script  # noqa: E402
from service.commands.home import prepare_home  # noqa: E402
from service.context import Context  # noqa: E402
from service.launch import Processes  # noqa: E402
from service.requests.states import ENDS  # noqa: E402
from unlearning.faces import read_metadata  # noqa: E402

CONNECTIONS = 16
PERSON = "s31"
TRAINING, JUDGING = ("gather_references",), ("unlearn", "audit", "rerun")
ALONE_SECONDS = 2.0
OVER = {*ENDS, "needs_attention"}
MOST_SECONDS = 3600.0


class Worker:
    """The worker's processes and what they are at."""

    def __init__(self, processes: Processes) -> None:
        if processes.worker is None:
            raise RuntimeError("Expected the worker to have been started.")
        self._pid = processes.worker.pid
        self._log = processes.logs / "worker.log"
        self._processes = processes

    def family(self) -> list[psutil.Process]:
        """The worker and everything below it."""
        parent = psutil.Process(self._pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Taken so far by those that run now."""
        total = 0.0
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stopped within the block."""
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGCONT)

    def is_ready(self) -> bool:
        """Whether it takes requests."""
        return "worker.ready" in self._log.read_text()

    def stage(self) -> str:
        """The stage begun last, empty before the first."""
        last = ""
        for line in self._log.read_text().splitlines():
            if "stage.begun" in line:
                last = json.loads(line)["stage"]
        return last

    def wait_for(self, stages: tuple[str, ...], seconds: float) -> None:
        """Until it is in one of these stages."""
        self._processes.wait_until(lambda: self.stage() in stages, f"the run to come to {stages}", seconds)


@dataclass(frozen=True)
class Served:
    """The service of a benchmark with a worker, and what asks it."""

    worker: Worker
    call: Call
    script: Path
    client: httpx.Client

    def ask(self) -> str:
        """Ask for an erasure; gives its id."""
        told = self.client.post("/v1/erasure-requests", json={"user_ids": [PERSON]})
        return str(told.raise_for_status().json()["requests"][0]["id"])

    def look(self, request_id: str) -> dict[str, Any]:
        """A request as the API tells it."""
        found: dict[str, Any] = self.client.get(f"/v1/erasure-requests/{request_id}").raise_for_status().json()
        return found


@contextmanager
def served(folder: Path, seconds: int, policy: str) -> Iterator[Served]:
    """A new home with the AT&T faces, served, warmed up with a burst, its worker ready."""
    settings = settings_of(folder / "home", rebuild_references="off", policy=policy)
    key = prepare_home(settings, Console(file=sys.stderr))
    url = f"http://127.0.0.1:{settings.port}"
    headers = {"Authorization": f"Bearer {key}"}
    rows = [row for row in read_metadata(settings.data_folder) if row.split == "test"]
    bodies = tuple((settings.data_folder / row.file_name).read_bytes() for row in rows)
    call = Call(f"{url}/v1/predictions", headers, bodies)
    script = write_script(call, folder / "load")
    context = Context.open(settings)
    with serving(context) as (processes, _), httpx.Client(base_url=url, headers=headers, timeout=30) as client:
        processes.start_worker()
        worker = Worker(processes)
        processes.wait_until(worker.is_ready, "the worker", 120)
        burst(call, script, CONNECTIONS, seconds)
        yield Served(worker, call, script, client)
    context.engine.dispose()


def measure(folder: Path, n_pairs: int, seconds: int) -> dict[str, Any]:
    """Pairs of bursts in both halves of the run."""
    pairs: list[dict[str, Any]] = []
    with served(folder, seconds, "strict") as service:
        worker = service.worker
        request_id = service.ask()
        for wanted in (TRAINING, JUDGING):
            worker.wait_for(wanted, 240)
            time.sleep(ALONE_SECONDS)  # the children have started
            for _ in range(n_pairs // 2):
                if worker.stage() not in wanted:
                    break
                pairs.append({"stage": worker.stage(), **pair(service, seconds, first=len(pairs) % 2)})
                time.sleep(ALONE_SECONDS)
        state = service.look(request_id)["state"]
    return {"pairs": pairs, "state_at_the_end": state, "n_images": len(service.call.bodies)}


def to_the_end(folder: Path, seconds: int, most: float) -> dict[str, Any]:
    """Burst after burst from a request to its end, `most` seconds at most; the first burst is before the request."""
    with served(folder, seconds, "standard") as service:
        bursts = [burst(service.call, service.script, CONNECTIONS, seconds)]
        request_id, began, told = service.ask(), time.monotonic(), ""
        while (request := service.look(request_id))["state"] not in OVER and time.monotonic() < began + most:
            bursts.append(burst(service.call, service.script, CONNECTIONS, seconds))
            check(bursts[-1])
            if request["progress"] != told:
                told = request["progress"]
                print(f"{time.monotonic() - began:6.0f} s  {request['state']}: {told or ''}", file=sys.stderr)
        took = time.monotonic() - began
    return {"state": request["state"], "seconds": took, "bursts": [asdict(one) for one in bursts]}


def tell_the_end(found: dict[str, Any]) -> None:
    """Print how the request ended and what callers felt until then."""
    before, *beside = found["bursts"]
    rates, p99s = ([one[what] for one in beside] for what in ("per_second", "p99_seconds"))
    print(f"The request was {found['state']} after {found['seconds']:.0f} s of load without a pause.")
    print(
        f"Answers a second: {before['per_second']:.0f} before it, {np.median(rates):.0f} (median of {len(rates)} "
        f"bursts, least {min(rates):.0f}) until its end."
    )
    print(
        f"p99: {1000 * before['p99_seconds']:.1f} ms before it, {1000 * np.median(p99s):.1f} (most "
        f"{1000 * max(p99s):.1f}) until its end."
    )


def pair(service: Served, seconds: int, *, first: int) -> dict[str, Any]:
    """One burst beside the resting worker and one beside the running one, in the order that `first` says."""
    found: dict[str, Any] = {}
    for name in ("resting", "running") if first == 0 else ("running", "resting"):
        if name == "resting":
            with service.worker.frozen():
                seen = burst(service.call, service.script, CONNECTIONS, seconds)
        else:
            before = service.worker.cpu_seconds()
            seen = burst(service.call, service.script, CONNECTIONS, seconds)
            found["worker_share"] = (service.worker.cpu_seconds() - before) / seconds
        check(seen)
        found[name] = asdict(seen)
    return found


def check(seen: Burst) -> None:
    """No answer may be an error."""
    if seen.n_refused or seen.n_broken:
        raise RuntimeError(f"Expected only answers of 2xx, got {seen}.")


def tell(found: dict[str, Any]) -> dict[str, Any]:
    """Print the table and the ratios; gives the ratios."""
    ratios: dict[str, Any] = {}
    print(f"{'':34s}{'a second':>18s}{'p50 ms':>14s}{'p99 ms':>14s}{'worker, cores':>15s}")
    for title, stages in (("training references", TRAINING), ("unlearning and audit", JUDGING)):
        pairs = [pair for pair in found["pairs"] if pair["stage"] in stages]
        if not pairs:
            print(f"{title}: the run was over before a pair could be taken")
            continue
        for name in ("resting", "running"):
            rate, p50, p99 = (
                float(np.median([pair[name][what] for pair in pairs]))
                for what in ("per_second", "p50_seconds", "p99_seconds")
            )
            share = f"{np.median([pair['worker_share'] for pair in pairs]):15.2f}" if name == "running" else ""
            print(f"{title + ', worker ' + name:34s}{rate:18.0f}{1000 * p50:14.1f}{1000 * p99:14.1f}{share}")

        def of(what: str, pairs: list[Any] = pairs) -> tuple[float, float, float]:
            return ratio([pair["running"][what] for pair in pairs], [pair["resting"][what] for pair in pairs])

        for what, bound in (("per_second", {"least": 0.9}), ("p99_seconds", {"most": 2.0})):
            ratios[f"{title}, {what}"] = middle, low, high = of(what)
            told = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            print(f"  {what.removesuffix('_seconds'):12s} running / resting   {told:22s}{verdict(middle, **bound)}")
    return ratios


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--quick", action="store_true", help="four pairs of two seconds instead of twelve of four")
    kind.add_argument("--to-the-end", action="store_true", help="load without a pause until the request has ended")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    options = parser.parse_args()
    need_wrk()
    n_pairs, seconds = (4, 2) if options.quick else (12, 4)
    with tempfile.TemporaryDirectory(prefix="forgetting-load-") as folder:
        if options.to_the_end:
            print(f"{CONNECTIONS} connections; {machine()}")
            tell_the_end(ended := to_the_end(Path(folder), seconds, MOST_SECONDS))
            if options.json:
                options.json.write_text(json.dumps({"machine": machine(), **ended}, indent=1) + "\n")
            return
        found = measure(Path(folder), n_pairs, seconds)
    print(f"Predictions of {found['n_images']} images over {CONNECTIONS} connections; {machine()}")
    ratios = tell(found)
    print(f"{len(found['pairs'])} pairs of {seconds} s; the request at the end: {found['state_at_the_end']}")
    if options.json:
        options.json.write_text(json.dumps({"ratios": ratios, "machine": machine(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
