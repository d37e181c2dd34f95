"""What watching costs: predictions a second with metrics and logs on, beside the same service with both off.

    python benchmarks/watching.py [--quick] [--json FILE]

Starts two services on copies of one home (the AT&T faces, the demo's recipe), one as it comes, one with
EXPUNGE_METRICS=false and EXPUNGE_LOG_LEVEL=error, and lets wrk send the same photographs to them in turns: on, off,
off, on, … so that what else the machine does falls on both. Each pair of neighbours gives one ratio; printed are their
median and the interval of the middle 90 % of medians of resampled pairs. While one service is measured, the other is
idle; the one that has metrics is scraped every five
seconds, three times as often as in the example configuration.

Beside the rates stand the CPU seconds that the serving processes took for a prediction: where the cores are the limit
they say the same, and they stay true when others use the machine.

Needs wrk (Debian's package).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Run as a script, this file's own folder comes first on the path and `audit.py` there would hide the package `audit`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import httpx  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
from rich.console import Console  # noqa: E402
from sqlmodel import select  # noqa: E402

from service.context import Context  # noqa: E402
from service.db import reading  # noqa: E402
from service.demo import prepare_home  # noqa: E402
from service.processes import Processes, free_ports  # noqa: E402
from service.settings import Settings  # noqa: E402
from service.tables import ServingWorker  # noqa: E402
from unlearning.faces import read_metadata  # noqa: E402

CONNECTIONS = 32
SCRAPE_SECONDS = 5.0
OFF = {"metrics": False, "log_level": "error"}

SCRIPT = """
local folder, n, key = "{folder}", {n}, "{key}"
local bodies, next_one = {{}}, 0
for i = 1, n do
  local file = io.open(folder .. "/" .. i, "rb")
  bodies[i] = file:read("*all")
  file:close()
end
request = function()
  next_one = next_one % n + 1
  return wrk.format("POST", "/v1/predictions", {{["Authorization"] = "Bearer " .. key}}, bodies[next_one])
end
"""


@dataclass(frozen=True)
class Served:
    """A service that answers predictions."""

    settings: Settings
    pid: int

    def cpu_seconds(self) -> float:
        """Taken so far by the serving processes and their parent."""
        parent = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
        return sum(each.user + each.system for each in times)


@dataclass(frozen=True)
class Turn:
    """What wrk counted in one turn, and what it cost."""

    per_second: float
    cpu_seconds: float
    """For one prediction."""


@contextmanager
def serving(settings: Settings) -> Iterator[Served]:
    """The serving processes, ready."""
    with Processes(settings) as processes:
        processes.start_serving()
        context = Context.open(settings)

        def ready() -> bool:
            with reading(context.engine) as s:
                rows = s.exec(select(ServingWorker).where(ServingWorker.lease_until > context.now())).all()
            return sum(row.acknowledged_generation >= 1 for row in rows) >= settings.api_workers

        processes.wait_until(ready, "the serving processes", 120)
        context.engine.dispose()
        if processes.serving is None:
            raise RuntimeError("Expected the serving processes to have been started.")
        yield Served(settings, processes.serving.pid)


def turn(served: Served, script: Path, seconds: float) -> Turn:
    """One turn of wrk; no answer may be an error."""
    address = f"http://127.0.0.1:{served.settings.port}"
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", str(script), address]
    before = served.cpu_seconds()
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    cpu_seconds = served.cpu_seconds() - before
    rate, count = re.search(r"Requests/sec:\s+([\d.]+)", told), re.search(r"(\d+) requests in", told)
    if rate is None or count is None or "Non-2xx" in told or "Socket errors" in told:
        raise RuntimeError(f"Expected nothing but answers of 2xx, wrk says:\n{told}")
    return Turn(float(rate[1]), cpu_seconds / int(count[1]))


@contextmanager
def scraped(settings: Settings) -> Iterator[None]:
    """Scrapes as a Prometheus would."""
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(SCRAPE_SECONDS):
            httpx.get(f"http://127.0.0.1:{settings.port}/metrics").raise_for_status()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def measure(folder: Path, n_pairs: int, seconds: float) -> dict[str, Any]:
    """Rates of both services in turns."""
    base = Settings(home=folder / "on", log_format="json")
    key = prepare_home(base, Console(file=sys.stderr))
    rows = [row for row in read_metadata(base.data_folder) if row.split == "test"]
    (folder / "bodies").mkdir()
    for number, row in enumerate(rows, 1):
        shutil.copy(base.data_folder / row.file_name, folder / "bodies" / str(number))
    script = folder / "predict.lua"
    script.write_text(SCRIPT.format(folder=folder / "bodies", n=len(rows), key=key))
    shutil.copytree(base.home, folder / "off")
    ports = free_ports(2)
    on = base.model_copy(update={"port": ports[0]})
    off = base.model_copy(update={"home": folder / "off", "port": ports[1], **OFF})
    turns: dict[str, list[Turn]] = {"on": [], "off": []}
    with serving(on) as with_it, serving(off) as without, scraped(on):
        for served in (with_it, without):
            turn(served, script, min(seconds, 3.0))
        for pair in range(n_pairs):
            for name in ("on", "off") if pair % 2 == 0 else ("off", "on"):
                turns[name].append(turn(with_it if name == "on" else without, script, seconds))
    figures = {
        name: {"per_second": [each.per_second for each in of], "cpu_seconds": [each.cpu_seconds for each in of]}
        for name, of in turns.items()
    }
    return {"turns": figures, "n_images": len(rows)}


def ratio(numerators: list[float], denominators: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median ratio of the pairs with its interval (percentile bootstrap over pairs, 90 %)."""
    ratios = np.array(numerators) / np.array(denominators)
    medians = np.median(np.random.default_rng(seed).choice(ratios, (4000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.05, 0.95])
    return float(np.median(ratios)), float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four pairs of two seconds instead of sixteen of six")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("Needs wrk: run apt-get install wrk.")
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), *((4, 2.0) if arguments.quick else (16, 6.0)))
    on, off = measured["turns"]["on"], measured["turns"]["off"]
    machine = (
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    )
    print(f"Predictions of {measured['n_images']} photographs over {CONNECTIONS} connections; {machine}")
    print(f"{len(on['per_second'])} pairs       a second   CPU ms each")
    for name, turns in (("metrics and logs", on), ("neither", off)):
        print(f"  {name:16s} {np.median(turns['per_second']):8.0f} {1000 * np.median(turns['cpu_seconds']):10.3f}")
    ratios = {
        "throughput": ratio(on["per_second"], off["per_second"]),
        "of_cpu": ratio(off["cpu_seconds"], on["cpu_seconds"]),
    }
    for name, (middle, low, high) in ratios.items():
        title = "with / without" if name == "throughput" else "by CPU time"
        print(f"  {title:16s} {middle:8.3f} ({low:.3f} to {high:.3f})")
    if arguments.json:
        arguments.json.write_text(json.dumps({"ratios": ratios, **measured, "machine": machine}, indent=2))


if __name__ == "__main__":
    main()
