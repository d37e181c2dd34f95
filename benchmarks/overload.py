"""Four times more requests than the service can answer, for a minute: what is answered, refused, and how it recovers.

    python benchmarks/overload.py [--quick] [--json FILE] [--size 112x92x1]

The service as it is started in the container, two serving processes, a ResNet-18. First its peak: 64 connections that
each have one request under way. Then an open loop, in which requests arrive at random at a set rate whatever became of
those before: half the peak (calm), four times the peak (overload), half the peak again (recovery). *Goodput* is what is
answered with 200 within two seconds, per second of the overload. Refusals are answers of 503 with `Retry-After`.

Recovery is the time from the end of the overload to the first moment from which on, for a whole second, every request
was answered with 200 and the 99th percentile is at most twice that of the calm. The client runs on the same two cores;
its share is printed, and so is a peak measured with that same client, for the one by wrk is not reached beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The project's root instead of this folder: `audit.py` here would hide the package `audit`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from benchmarks.loads.client import Plan, answers_of  # noqa: E402
from benchmarks.loads.figures import Others, machine, verdict  # noqa: E402
from benchmarks.loads.homes import Memory, cpu_seconds, image_files, make_home, serving, serving_pids, settings_of  # noqa: E402
from service.context import Context  # noqa: E402

N_IMAGES = 48
TIMES_PEAK = 4.0
IN_TIME_SECONDS = 2.0
CONNECTIONS = 2000


@dataclass(frozen=True)
class Times:
    """Seconds of each part."""

    peak: float
    calm: float
    overload: float
    after: float


FULL, QUICK = Times(peak=10, calm=10, overload=60, after=10), Times(peak=3, calm=3, overload=6, after=5)


def recovery_seconds(
    since_end: NDArray[np.float64], latency: NDArray[np.float64], good: NDArray[np.bool_], *, most_p99: float
) -> float:
    """Seconds after the overload's end from which on a whole second is well; infinite if none is.

    Args:
        since_end: when each request was due, in seconds since the end of the overload, `(n,)`.
        latency: seconds until each was answered. good: whether with 200.
        most_p99: of a second that is well.
    """
    for start in np.arange(0.0, max(since_end.max(initial=0.0) - 1.0, 0.0) + 1e-9, 0.05):
        within = (since_end >= start) & (since_end < start + 1.0)
        if within.any() and good[within].all() and np.quantile(latency[within], 0.99) <= most_p99:
            return float(start)
    return float("inf")


def judge(answers: dict[str, Any], times: Times, peak: float) -> dict[str, Any]:
    """Figures of an open loop of calm, overload and recovery."""
    began, latency, status = answers["began"], answers["ended"] - answers["began"], answers["status"]
    start = began.min()
    until = start + times.calm, start + times.calm + times.overload
    calm, busy, later = began < until[0], (began >= until[0]) & (began < until[1]), began >= until[1]
    good = (status == 200) & (latency <= IN_TIME_SECONDS)
    answered = busy & (status == 200)
    calm_p99 = float(np.quantile(latency[calm], 0.99))
    # by the time of the answer, over the overload without the first second, in which the queue fills
    done = good & (answers["ended"] >= until[0] + 1.0) & (answers["ended"] < until[1])
    goodput = float(done.sum() / (times.overload - 1.0))
    refused = busy & (status == 503)
    return {
        "offered": float(busy.sum() / times.overload),
        "goodput": goodput,
        "of_peak": goodput / peak,
        "p50_seconds": float(np.quantile(latency[answered], 0.5)) if answered.any() else float("nan"),
        "p99_seconds": float(np.quantile(latency[answered], 0.99)) if answered.any() else float("nan"),
        "refused": float(refused.sum() / times.overload),
        "refusal_p99_seconds": float(np.quantile(latency[refused], 0.99)) if refused.any() else float("nan"),
        "statuses": {str(value): int((status[busy] == value).sum()) for value in np.unique(status[busy])},
        "calm_p99_seconds": calm_p99,
        "recovery_seconds": recovery_seconds(
            began[later] - until[1], latency[later], status[later] == 200, most_p99=2 * calm_p99
        ),
    }


def measure(folder: Path, size: str, times: Times) -> dict[str, Any]:
    """Peak, then the three phases."""
    height, width, channels = (int(part) for part in size.split("x"))
    files = image_files((height, width, channels), N_IMAGES)
    names = []
    for number, file in enumerate(files):
        names.append(str(folder / f"{number}.jpg"))
        Path(names[-1]).write_bytes(file)
    settings = settings_of(folder / "home")
    _, key = make_home(settings, (height, width, channels), files, range(1))
    headers = {"Content-Type": "image/jpeg", "Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{settings.port}/v1/predictions"
    context = Context.open(settings)
    with serving(context) as (_, pids), Memory(pids) as memory:
        answers_of(Plan(url, headers, names, 64), folder, 2.0)
        closed = answers_of(Plan(url, headers, names, 64), folder, times.peak)
        ended = closed["ended"][closed["status"] == 200]
        peak = float(np.sum(ended > ended[0] + 0.5) / (ended[-1] - ended[0] - 0.5))
        phases = [(peak / 2, times.calm), (TIMES_PEAK * peak, times.overload), (peak / 2, times.after)]
        began, before, others = time.time(), cpu_seconds(pids), Others()
        answers = answers_of(Plan(url, headers, names, CONNECTIONS, phases), folder)
        after = serving_pids(context)
        own = cpu_seconds(pids) - before + float(answers["load_share"]) * (time.time() - began)
        share = others.share(own)
    context.engine.dispose()
    at, of = np.array(memory.at), np.array(memory.of)  # (n_looks,), (n_looks, n_processes)
    return {
        "peak": peak,
        **judge(answers, times, peak),
        "others": share,
        "client_share": float(answers["load_share"]),
        "same_processes": after == pids,
        "bytes_before": of[at < began + times.calm].max(axis=0).tolist(),
        "bytes_most": of.max(axis=0).tolist(),
        "bytes_after": of[-1].tolist(),
    }


def tell(found: dict[str, Any], times: Times) -> None:
    """Print the figures and the targets."""
    offered = f"{found['offered']:8.0f} a second for {times.overload:g} s"
    goodput = f"{found['goodput']:8.0f} a second, p50 {found['p50_seconds']:.2f} s, p99 {found['p99_seconds']:.2f} s"
    refused = f"{found['refused']:8.0f} a second, p99 {found['refusal_p99_seconds']:.2f} s"
    print(f"peak                 {found['peak']:8.0f} a second over 64 connections")
    print(f"offered              {offered}; the client takes {found['client_share']:.2f} of a core")
    print(f"others               {found['others']:8.0%} of all cores")
    print(f"goodput              {goodput}")
    print(f"refused              {refused}; answers by status {found['statuses']}")
    print(f"  goodput / peak     {found['of_peak']:8.2f}   {verdict(found['of_peak'], least=0.9)}")
    print(f"  recovery           {found['recovery_seconds']:8.2f} s {verdict(found['recovery_seconds'], most=2.0)}")
    print(f"  no process ended   {found['same_processes']!s:>8s}")
    for name, title in (("bytes_before", "before"), ("bytes_most", "at most"), ("bytes_after", "after")):
        print(f"  memory {title:8s}    {', '.join(f'{each / 1e6:.0f} MB' for each in found[name])}")


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="six seconds of overload instead of sixty")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    parser.add_argument("--size", default="112x92x1", help="height, width and channels of the images")
    options = parser.parse_args()
    times = QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="overload-") as folder:
        found = measure(Path(folder), options.size, times)
    print(f"ResNet-18, {options.size} JPEG faces; {machine()}")
    tell(found, times)
    if options.json:
        options.json.write_text(json.dumps({"size": options.size, "machine": machine(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
