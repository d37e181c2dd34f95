"""Starting the contenders, waiting until they answer, and freezing those whose turn it is not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import httpx
import psutil

from benchmarks.loads.figures import Others
from benchmarks.loads.homes import hidden
from benchmarks.loads.wrk import Call
from service.launch import serve_command, stop
from service.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_SECONDS = 120


@dataclass(frozen=True)
class Contender:
    """A server to measure.

    Attributes:
        title: its row in the table.
        command, environment: how it is started; `environment` adds to this process's.
        package: whose dependencies it is installed with: uvicorn takes uvloop and httptools wherever it finds them, and
            another contender's package brings them into this environment. None: with all that is there.
        call: what a request to it looks like.
        is_ready: once it answers at all.
    """

    title: str
    command: list[str]
    environment: Mapping[str, str]
    package: str | None
    call: Call
    is_ready: Callable[[], bool] = field(default=lambda: True)


@dataclass(frozen=True)
class Running:
    """A started contender."""

    contender: Contender
    process: subprocess.Popen[bytes]

    def family(self) -> list[psutil.Process]:
        """The process and everything below it."""
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def cpu_seconds(self) -> float:
        """Taken so far by all of them."""
        times = [process.cpu_times() for process in self.family()]
        return sum(each.user + each.system for each in times)

    def connections(self) -> list[int]:
        """How many connections each of the processes that have any holds, most first."""
        port = urlsplit(self.contender.call.url).port
        counts = []
        for process in self.family():
            held = process.net_connections(kind="tcp")
            counts.append(sum(each.laddr.port == port and each.status == psutil.CONN_ESTABLISHED for each in held))
        return sorted((count for count in counts if count), reverse=True)

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Thawed within the block, frozen after it: some servers spin while they wait for work."""
        for process in self.family():
            process.send_signal(signal.SIGCONT)
        try:
            self.wait_until_ready()
            yield
        finally:
            for process in self.family():
                process.send_signal(signal.SIGSTOP)

    def wait_until_ready(self) -> None:
        """Until twenty requests in a row, each over a connection of its own, were answered."""
        call, deadline, n_answered = self.contender.call, time.monotonic() + _PATIENCE_SECONDS, 0
        while n_answered < 20:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Expected {self.contender.title} to answer; see its log.")
            n_answered += 1
            try:
                told = httpx.post(call.url, content=call.bodies[0], headers=call.headers, timeout=10)
                answered = told.is_success and "probabilities" in told.text and self.contender.is_ready()
            except httpx.TransportError:
                answered = False
            if not answered:
                n_answered = 0
                time.sleep(0.1)


@contextmanager
def started(contender: Contender, folder: Path) -> Iterator[Running]:
    """A contender that answers, frozen until it is woken; its log lies in the folder."""
    environment = {
        **os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1", **contender.environment,
        "PYTHONPATH": os.pathsep.join([*hidden(contender.package, folder), str(ROOT)]),
    }  # fmt: skip
    environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            contender.command, env=environment, cwd=folder, stdout=log, stderr=log, start_new_session=True
        )
    running = Running(contender, process)
    try:
        running.wait_until_ready()
        with running.awake():
            pass
        yield running
    finally:
        with suppress(psutil.NoSuchProcess):
            for each in running.family():
                each.send_signal(signal.SIGCONT)
        stop(process, 30)


def ours(title: str, settings: Settings, call: Call, is_ready: Callable[[], bool]) -> Contender:
    """The service as `expunge serve` starts it."""
    command, environment = serve_command(settings)
    return Contender(title, command, environment, "expunge", call, is_ready)


class Limit:
    """Two processes with the model in a loop, see `raw.py`."""

    def __init__(self, folder: Path, files: Path, environment: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "benchmarks.contenders.raw", str(files)]
        env = {**os.environ, "OMP_NUM_THREADS": "1", **environment, "PYTHONPATH": str(ROOT)}
        self._processes = [
            subprocess.Popen(command, env=env, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for process in self._processes:
            if _pipe(process.stdout).readline() != "ready\n":
                raise RuntimeError("Expected the model in a loop to get ready; its error stands above.")

    def burst(self, seconds: int, **task: int | bool | str) -> dict[str, float]:
        """Images a second, both processes together, processor time of each image, and what others took meanwhile.

        Args:
            task: as `raw.py` has it.
        """
        others = Others()
        for process in self._processes:
            pipe = _pipe(process.stdin)
            pipe.write(json.dumps({"seconds": seconds, **task}) + "\n")
            pipe.flush()
        told = [json.loads(_pipe(process.stdout).readline()) for process in self._processes]
        cpu = sum(each["cpu_seconds"] for each in told)
        return {
            "per_second": sum(each["n"] / each["seconds"] for each in told),
            "cpu_seconds": cpu / sum(each["n"] for each in told),
            "others": others.share(cpu),
        }

    def __enter__(self) -> Limit:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            _pipe(process.stdin).close()
            process.wait(30)
            _pipe(process.stdout).close()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise RuntimeError("Expected a process with pipes.")
    return pipe
