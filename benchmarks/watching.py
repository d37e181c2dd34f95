"""What watching costs: predictions a second with metrics and logs on, beside the same service with both off.

    python benchmarks/watching.py [--quick] [--json FILE]

Starts several services of each kind on copies of one home (the AT&T faces, the demo's recipe): some as they come, some
with EXPUNGE_METRICS=false and EXPUNGE_LOG_LEVEL=error. Several, because two services of the very same kind differ: each
keeps through its life a speed of its own, which hangs on where the kernel and the allocator put it, and with one of
each kind that difference would be taken for the cost of watching. They take turns, both kinds alternating, in another
order each round, so that what else the machine does falls on both. Whose turn it is not is frozen (SIGSTOP). Those with
metrics are scraped at the beginning of their turn and every five seconds, three times as often as in the example
configuration.

The ratio is of the kinds' means over all services and rounds; its interval is the middle 90 % of ratios when services
and rounds are both drawn again (a bootstrap of two levels). Beside the rates stand the CPU seconds that the serving
processes took for a prediction, and the slowest and the quickest service of each kind, to show what two alike differ
by.

Needs wrk (Debian's package).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The project's root instead of this folder: `audit.py` here would hide the package `audit`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import httpx  # noqa: E402
import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from rich.console import Console  # noqa: E402

from benchmarks.contenders.running import Running, ours, started  # noqa: E402
from benchmarks.loads.figures import machine, verdict  # noqa: E402
from benchmarks.loads.homes import serving_pids  # noqa: E402
from benchmarks.loads.wrk import Call, burst, need_wrk, write_script  # noqa: E402
from service.commands.home import prepare_home  # noqa: E402
from service.context import Context  # noqa: E402
from service.launch import free_ports  # noqa: E402
from service.settings import Settings  # noqa: E402
from unlearning.faces import read_metadata  # noqa: E402

CONNECTIONS = 32
SCRAPE_SECONDS = 5.0
KINDS: dict[str, dict[str, Any]] = {"on": {}, "off": {"metrics": False, "log_level": "error"}}


@dataclass(frozen=True)
class Plan:
    """How many services of each kind, and how long to look."""

    n_services: int
    n_rounds: int
    seconds: int


QUICK = Plan(n_services=2, n_rounds=2, seconds=2)
FULL = Plan(n_services=4, n_rounds=6, seconds=4)


@contextmanager
def scraped(running: Running, kind: str) -> Iterator[None]:
    """Scrapes as a Prometheus would, if it is a kind that can be."""
    stop = threading.Event()
    address = str(httpx.URL(running.contender.call.url).join("/metrics"))

    def scrape() -> None:
        while True:
            httpx.get(address).raise_for_status()
            if stop.wait(SCRAPE_SECONDS):
                return

    thread = threading.Thread(target=scrape)
    if kind == "on":
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if kind == "on":
            thread.join()


def turn(running: Running, kind: str, script: Path, seconds: int) -> tuple[float, float]:
    """Predictions a second and CPU seconds for one of them; no answer may be an error."""
    call = running.contender.call
    with running.awake():
        burst(call, script, CONNECTIONS, 1)  # caches are warm again
        before = running.cpu_seconds()
        with scraped(running, kind):
            seen = burst(call, script, CONNECTIONS, seconds)
        cpu_seconds = running.cpu_seconds() - before
    if seen.n_refused or seen.n_broken:
        raise RuntimeError(f"Expected only answers of 2xx with {kind}, got {seen}.")
    return seen.per_second, cpu_seconds / (seen.per_second * seconds)


def measure(folder: Path, plan: Plan) -> dict[str, Any]:
    """Rates and CPU seconds of both kinds, each float `(n_services, n_rounds)`."""
    base = Settings(home=folder / "home", log_format="json")
    key = prepare_home(base, Console(file=sys.stderr))
    rows = [row for row in read_metadata(base.data_folder) if row.split == "test"]
    files = tuple((base.data_folder / row.file_name).read_bytes() for row in rows)
    seen = {kind: np.zeros((2, plan.n_services, plan.n_rounds)) for kind in KINDS}
    with ExitStack() as stack:
        services = []
        for number in range(plan.n_services):
            for kind, changes in KINDS.items():
                place = folder / f"{kind}-{number}"
                shutil.copytree(base.home, place / "home")
                (port,) = free_ports(1)
                settings = base.model_copy(update={"home": place / "home", "port": port, **changes})
                call = Call(f"http://127.0.0.1:{port}/v1/predictions", {"Authorization": f"Bearer {key}"}, files)
                context = Context.open(settings)
                stack.callback(context.engine.dispose)
                contender = ours(
                    place.name,
                    settings,
                    call,
                    lambda context=context, n=settings.api_workers: len(serving_pids(context)) == n,  # type: ignore[misc]
                )
                running = stack.enter_context(started(contender, place))
                services.append((kind, number, running, write_script(call, place / "load")))
                print(f"started {place.name}", file=sys.stderr)
        for each_round in range(plan.n_rounds):
            order = services if each_round % 2 == 0 else services[::-1]
            first = 2 * each_round % len(order)
            for kind, number, running, script in order[first:] + order[:first]:
                seen[kind][:, number, each_round] = turn(running, kind, script, plan.seconds)
            print(f"round {each_round + 1} of {plan.n_rounds}", file=sys.stderr)
    return {
        "n_images": len(rows),
        "per_second": {k: v[0] for k, v in seen.items()},
        "cpu_seconds": {k: v[1] for k, v in seen.items()},
    }


def ratio(above: NDArray[np.float64], below: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Ratio of the means of two `(n_services, n_rounds)`, and the middle 90 % when services and rounds are redrawn."""
    rng, drawn = np.random.default_rng(seed), []
    n_services, n_rounds = above.shape
    for _ in range(4000):
        rounds = rng.integers(n_rounds, size=n_rounds)
        means = [each[rng.integers(n_services, size=n_services)][:, rounds].mean() for each in (above, below)]
        drawn.append(means[0] / means[1])
    low, high = np.quantile(drawn, [0.05, 0.95])
    return float(above.mean() / below.mean()), float(low), float(high)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two services of each kind instead of four, and briefly")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    arguments = parser.parse_args()
    need_wrk()
    plan = QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory(prefix="watching-") as folder:
        measured = measure(Path(folder), plan)
    rates, costs = measured["per_second"], measured["cpu_seconds"]
    print(f"Predictions of {measured['n_images']} images over {CONNECTIONS} connections; {machine()}")
    print(f"{plan.n_services} services of each kind, {plan.n_rounds} rounds of {plan.seconds} s")
    print(f"{'':20s}{'a second':>10s}{'slowest and quickest service':>32s}{'CPU ms each':>14s}")
    for kind, title in (("on", "metrics and logs"), ("off", "neither")):
        of_service = rates[kind].mean(axis=1)
        spread = f"{of_service.min():.0f} {of_service.max():.0f}"
        print(f"  {title:18s}{rates[kind].mean():10.0f}{spread:>32s}{1000 * costs[kind].mean():14.3f}")
    ratios = {"throughput": ratio(rates["on"], rates["off"]), "cpu": ratio(costs["off"], costs["on"])}
    for name, title in (("throughput", "with / without"), ("cpu", "by CPU time")):
        told = "{:.3f} ({:.3f} to {:.3f})".format(*ratios[name])
        print(f"  {title:18s}{told:>28s}   {verdict(ratios[name][0], least=0.97)}")
    if arguments.json:
        series = {
            what: {kind: measured[what][kind].tolist() for kind in KINDS} for what in ("per_second", "cpu_seconds")
        }
        arguments.json.write_text(json.dumps({"ratios": ratios, **series, "machine": machine()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
