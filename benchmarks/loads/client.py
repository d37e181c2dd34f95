"""A client that remembers every answer: closed loop over so many connections, or open loop at rates set beforehand.

    python -m benchmarks.loads.client PLAN.json ANSWERS.npz

runs it as a process of its own, which the benchmarks do: what it takes of the cores is then told apart from what they
do themselves. It ends at the end of the last phase, or when its standard input is closed. Much slower than wrk (about
40 µs of one core an answer), so throughput is measured with wrk and this is for what wrk cannot say.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_TICK_SECONDS = 0.001
_LAST_ANSWERS_SECONDS = 10.0


@dataclass(frozen=True)
class Plan:
    """What to send.

    Attributes:
        url, headers: of each request, a POST.
        files: paths of the bodies, sent in turn.
        connections: closed loop: as many requests are under way at all times; open loop: at most so many.
        phases: open loop: (requests a second, seconds), one after the other, arriving at random; empty: closed loop.
        keep: whether to keep what answers say.
    """

    url: str
    headers: dict[str, str]
    files: list[str]
    connections: int
    phases: list[tuple[float, float]] = field(default_factory=list)
    keep: bool = False

    def write(self, path: Path) -> Path:
        """As a JSON file."""
        path.write_text(json.dumps(asdict(self)))
        return path


class Answer(NamedTuple):
    """One request and its end.

    Attributes:
        image: which of the files.
        port: the connection's own, by which the serving process at its other end is found; 0 if never sent.
        began: wall clock, when it was sent (closed loop) or should have been (open loop).
        ended: when its answer was complete.
        status: of HTTP; 0 for a broken connection, -1 for a request that found all connections busy.
        body: what came; empty unless kept.
    """

    image: int
    port: int
    began: float
    ended: float
    status: int
    body: bytes


class Load:
    """Sends by a plan and collects the answers."""

    def __init__(self, plan: Plan) -> None:
        place = urlsplit(plan.url)
        self.plan = plan
        self.host, self.port = place.hostname or "", place.port or 80
        self.requests = [_request(plan, place.path, Path(file).read_bytes()) for file in plan.files]
        self.answers: list[Answer] = []
        self.idle: deque[_Connection] = deque()
        self.n_open = 0
        self.stopping = False
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def next_image(self) -> int:
        """Files in turn."""
        self._next = (self._next + 1) % len(self.requests)
        return self._next

    async def run(self, stop: asyncio.Event) -> None:
        """All phases, or until told to stop; then the answers still under way."""
        if self.plan.phases:
            await self._open_loop(stop)
        else:
            for _ in range(self.plan.connections):
                self.connect()
            await stop.wait()
        self.stopping = True
        deadline = time.time() + _LAST_ANSWERS_SECONDS
        while self.n_open > len(self.idle) and time.time() < deadline:
            await asyncio.sleep(0.01)
        for connection in list(self.idle):
            connection.transport.close()

    async def _open_loop(self, stop: asyncio.Event) -> None:
        began = time.time()
        arrivals = deque((began + arrivals_of(self.plan.phases)).tolist())
        while arrivals and not stop.is_set():
            now = time.time()
            while arrivals and arrivals[0] <= now:
                self._send(arrivals.popleft())
            await asyncio.sleep(_TICK_SECONDS)

    def _send(self, due: float) -> None:
        if self.idle:
            self.idle.popleft().send(self.next_image(), due)
        elif self.n_open < self.plan.connections:
            self.connect((self.next_image(), due))
        else:
            self.answers.append(Answer(self.next_image(), 0, due, time.time(), -1, b""))

    def connect(self, first: tuple[int, float] | None = None) -> None:
        """Open a connection, on which a request is then sent."""
        self.n_open += 1
        task = asyncio.get_running_loop().create_task(self._connect(first))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, first: tuple[int, float] | None) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _Connection(self, first), self.host, self.port)
        except OSError:
            self.n_open -= 1
            image, began = first or (0, time.time())
            self.answers.append(Answer(image, 0, began, time.time(), 0, b""))

    def answered(self, connection: _Connection, answer: Answer) -> None:
        """One request is over; its connection is free."""
        self.answers.append(answer)
        if self.plan.phases or self.stopping:
            self.idle.append(connection)
        else:
            connection.send(self.next_image(), time.time())

    def lost(self, connection: _Connection) -> None:
        """A connection is gone, with the request that was under way on it."""
        self.n_open -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        if not self.plan.phases and not self.stopping:
            self.connect()


class _Connection(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, load: Load, first: tuple[int, float] | None) -> None:
        self._load = load
        self._first = first
        self._received = bytearray()
        self._image, self._began = -1, 0.0
        self._wanted = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self._port = transport.get_extra_info("sockname")[1]
        self.send(*(self._first or (self._load.next_image(), time.time())))

    def send(self, image: int, began: float) -> None:
        self._image, self._began = image, began
        self.transport.write(self._load.requests[image])

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._wanted:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._received, 0, end)
            if length is None:
                raise RuntimeError("Expected answers that say their length.")
            self._wanted = end + 4 + int(length[1])
        if len(self._received) >= self._wanted:
            self._finish(int(self._received[9:12]))

    def connection_lost(self, _: Exception | None) -> None:
        if self._image >= 0:
            self._load.answers.append(Answer(self._image, self._port, self._began, time.time(), 0, b""))
        self._load.lost(self)

    def _finish(self, status: int) -> None:
        body = bytes(self._received[self._received.find(b"\r\n\r\n") + 4 :]) if self._load.plan.keep else b""
        answer = Answer(self._image, self._port, self._began, time.time(), status, body)
        self._image, self._wanted = -1, 0
        self._received.clear()
        self._load.answered(self, answer)


def arrivals_of(phases: Sequence[tuple[float, float]], seed: int = 0) -> np.ndarray:
    """Seconds from the start at which requests arrive: a Poisson process at each phase's rate."""
    rng, parts, start = np.random.default_rng(seed), [], 0.0
    for rate, seconds in phases:
        parts.append(start + np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds))))
        start += seconds
    return np.concatenate(parts)


def _request(plan: Plan, path: str, body: bytes) -> bytes:
    headers = {"Host": urlsplit(plan.url).netloc, "Content-Length": str(len(body)), **plan.headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + body


def columns(answers: Sequence[Answer], *, keep: bool) -> dict[str, np.ndarray]:
    """Answers as arrays of equal length `(n_answers,)`, in the order in which they ended.

    With `keep` also, for answers of 200: `generation`, `version` (place in `versions`), `label` (place among the
    probabilities, -1 for a name that is not there) and `probabilities` (n_answers, n_classes), NaN elsewhere.
    """
    table = {
        name: np.array([getattr(answer, name) for answer in answers])
        for name in ("image", "port", "began", "ended", "status")
    }
    if not keep:
        return table
    said = [json.loads(answer.body) if answer.status == 200 else None for answer in answers]
    versions = sorted({each["model_version"] for each in said if each})
    n_classes = max((len(each["probabilities"]) for each in said if each), default=0)
    probabilities = np.full((len(said), n_classes), np.nan)
    label, generation, version = (np.full(len(said), -1) for _ in range(3))
    for row, each in enumerate(said):
        if each:
            names = list(each["probabilities"])
            probabilities[row] = list(each["probabilities"].values())
            label[row] = names.index(each["label"]) if each["label"] in names else -1
            generation[row], version[row] = each["generation"], versions.index(each["model_version"])
    return table | {
        "probabilities": probabilities, "label": label, "generation": generation, "version": version,
        "versions": np.array(versions),
    }  # fmt: skip


def answers_of(
    plan: Plan, folder: Path, seconds: float | None = None, *, meanwhile: Callable[[], None] | None = None
) -> dict[str, Any]:
    """Answers as `columns` gives them, of a client process.

    Args:
        folder: where it keeps its files.
        seconds: after which a closed loop is ended.
        meanwhile: instead: what is done while it runs; its end ends the load.
    """
    root = Path(__file__).resolve().parents[2]
    plan_file, found_file = plan.write(folder / "plan.json"), folder / "answers.npz"
    command = [sys.executable, "-m", "benchmarks.loads.client", str(plan_file), str(found_file)]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as client:
        try:
            if client.stdout is None or client.stdout.readline() != b"started\n":
                raise RuntimeError("Expected the client to start; its error stands above.")
            if meanwhile is not None:
                meanwhile()
            elif seconds is not None:
                time.sleep(seconds)
            if meanwhile is not None or seconds is not None:
                client.communicate()
            status = client.wait()
        except BaseException:
            client.kill()
            raise
    if status:
        raise RuntimeError(f"Expected the client to end well, it ended with {status}.")
    with np.load(found_file) as found:
        return dict(found)


async def _until_told(load: Load) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, stop.set)
    print("started", flush=True)
    await load.run(stop)


def main() -> None:
    """As a process of its own; see the module."""
    values = json.loads(Path(sys.argv[1]).read_text())
    load = Load(Plan(**values))
    began = time.time()
    asyncio.run(_until_told(load))
    used = resource.getrusage(resource.RUSAGE_SELF)
    share = (used.ru_utime + used.ru_stime) / (time.time() - began)
    np.savez(sys.argv[2], load_share=share, **columns(load.answers, keep=load.plan.keep))


if __name__ == "__main__":
    main()
