"""Closed-loop load by wrk (Debian's package): so many connections, each with one request under way at all times."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_SCRIPT = """
local requests, next_one = {{}}, 0
init = function()
  for i = 1, {n} do
    local file = io.open("{folder}/" .. i, "rb")
    requests[i] = wrk.format("POST", "{path}", {{{headers}}}, file:read("*all"))
    file:close()
  end
end
request = function()
  next_one = next_one % {n} + 1
  return requests[next_one]
end
done = function(summary, latency)
  local failed = summary.errors
  io.write(string.format(
    '{{"n": %d, "microseconds": %d, "p50": %f, "p99": %f, "most": %f, "refused": %d, "broken": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), latency.max,
    failed.status, failed.connect + failed.read + failed.write + failed.timeout))
end
"""


@dataclass(frozen=True)
class Call:
    """A request as one server wants it: where to, and the bodies to send in turn."""

    url: str
    headers: dict[str, str]
    bodies: tuple[bytes, ...]


@dataclass(frozen=True)
class Burst:
    """What wrk counted.

    Attributes:
        per_second: answers of 2xx a second.
        p50_seconds, p99_seconds: of the time until an answer was complete. For an answer that took long wrk also counts
            the ones that its connection would have asked for meanwhile. One that took longer than 2 s, its time-out, is
            counted without its time: the percentiles and the maximum know nothing of it, `n_broken` does.
        n_refused: answers of another status. n_broken: connections that broke, and answers after the time-out.
        load_share: of one core, what wrk itself used.
    """

    per_second: float
    p50_seconds: float
    p99_seconds: float
    most_seconds: float
    n_refused: int
    n_broken: int
    load_share: float


def need_wrk() -> None:
    """End with a sentence if wrk is not installed."""
    if shutil.which("wrk") is None:
        sys.exit("Needs wrk: run apt-get install wrk.")


def write_script(call: Call, folder: Path) -> Path:
    """wrk's script for a call; the bodies lie beside it. All requests are made once, before the clock starts."""
    folder.mkdir(parents=True)
    for number, body in enumerate(call.bodies, 1):
        (folder / str(number)).write_bytes(body)
    headers = ", ".join(f'["{name}"] = "{value}"' for name, value in call.headers.items())
    script = folder / "script.lua"
    path = urlsplit(call.url).path
    script.write_text(_SCRIPT.format(n=len(call.bodies), folder=folder, path=path, headers=headers))
    return script


def burst(call: Call, script: Path, connections: int, seconds: int) -> Burst:
    """Load a server for some seconds over new connections."""
    place = urlsplit(call.url)
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "-s",
        str(script),
        f"{place.scheme}://{place.netloc}",
    ]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(f"Expected wrk to run, it says: {done.stdout}{done.stderr}")
    counted = json.loads(done.stdout.strip().splitlines()[-1])
    took = counted["microseconds"] / 1e6
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Burst(
        (counted["n"] - counted["refused"]) / took, counted["p50"] / 1e6, counted["p99"] / 1e6, counted["most"] / 1e6,
        counted["refused"], counted["broken"], cpu / took,
    )  # fmt: skip
