"""What watching costs: predictions a second with metrics and logs on, beside the same service with both off.

    python benchmarks/watching.py [--quick] [--json FILE]

Starts two services on copies of one home (the AT&T faces, the demo's recipe), one as it comes, one with
EXPUNGE_METRICS=false and EXPUNGE_LOG_LEVEL=error, and lets wrk send the same photographs to them in turns: on, off,
off, on, … so that what else the machine does falls on both. Each pair of neighbours gives one ratio; printed are their
median and the interval of the middle 90 % of medians of resampled pairs. While one service is measured, the other is
idle; a scrape a second goes to the one that has metrics, as Prometheus would at its keenest.

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
from pathlib import Path
from typing import Any

# Run as a script, this file's own folder comes first on the path and `audit.py` there would hide the package `audit`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import httpx  # noqa: E402
import numpy as np  # noqa: E402
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


@contextmanager
def serving(settings: Settings) -> Iterator[Settings]:
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
        yield settings


def rate(settings: Settings, script: Path, seconds: float) -> float:
    """Answers a second that wrk counts; none of them may be an error."""
    command = [
        "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", str(script), f"http://127.0.0.1:{settings.port}",
    ]  # fmt: skip
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"Requests/sec:\s+([\d.]+)", told)
    if found is None or "Non-2xx" in told or "Socket errors" in told:
        raise RuntimeError(f"Expected nothing but answers of 2xx, wrk says:\n{told}")
    return float(found[1])


@contextmanager
def scraped(settings: Settings) -> Iterator[None]:
    """One scrape a second."""
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(1.0):
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
    rates: dict[str, list[float]] = {"on": [], "off": []}
    with serving(on), serving(off), scraped(on):
        for settings in (on, off):
            rate(settings, script, min(seconds, 3.0))
        for pair in range(n_pairs):
            for name in ("on", "off") if pair % 2 == 0 else ("off", "on"):
                rates[name].append(rate(on if name == "on" else off, script, seconds))
    return {"rates": rates, "n_images": len(rows)}


def summary(rates: dict[str, list[float]], seed: int = 0) -> dict[str, float]:
    """Median ratio of the pairs with its interval (percentile bootstrap over pairs, 90 %)."""
    ratios = np.array(rates["on"]) / np.array(rates["off"])
    rng = np.random.default_rng(seed)
    medians = np.median(rng.choice(ratios, (4000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.05, 0.95])
    return {
        "ratio": float(np.median(ratios)), "low": float(low), "high": float(high),
        "on": float(np.median(rates["on"])), "off": float(np.median(rates["off"])),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="four pairs of two seconds instead of sixteen of six")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("Needs wrk: run apt-get install wrk.")
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(Path(folder), *((4, 2.0) if arguments.quick else (16, 6.0)))
    found = summary(measured["rates"])
    machine = (
        f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}, Python {platform.python_version()}"
    )
    print(f"Predictions of {measured['n_images']} photographs over {CONNECTIONS} connections; {machine}")
    print(f"  metrics and logs on   {found['on']:8.0f} a second (median of {len(measured['rates']['on'])})")
    print(f"  both off              {found['off']:8.0f} a second")
    print(f"  on / off              {found['ratio']:8.3f} ({found['low']:.3f} to {found['high']:.3f})")
    if arguments.json:
        arguments.json.write_text(json.dumps({**found, **measured, "machine": machine}, indent=2))


if __name__ == "__main__":
    main()
