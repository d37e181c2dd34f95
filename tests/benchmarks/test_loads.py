"""The benchmarks' own parts: a client that counts right, and judgements that see what they are there to see."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loads.client import Answer, Load, Plan, arrivals_of, columns
from benchmarks.loads.figures import ratio, verdict
from benchmarks.overload import Times, recovery_seconds
from benchmarks.overload import judge as judge_overload
from benchmarks.swaps import TOLERANCE, Swap, torn
from benchmarks.swaps import judge as judge_swaps
from tests.waiting import play, until


class Echo(asyncio.Protocol):
    """Answers each request of one chunk with a status; breaks every connection at its third request."""

    def __init__(self, status: int, breaks: bool) -> None:
        self._answer = f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode()
        self._n, self._breaks = 0, breaks

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, _: bytes) -> None:
        self._n += 1
        if self._breaks and self._n == 3:
            self.transport.abort()
            return
        self.transport.write(self._answer[:20])  # in two pieces
        self.transport.write(self._answer[20:])


def answers(
    folder: Path, enough: Callable[[list[Answer]], bool], *, status: int = 200, breaks: bool = False, **plan: object
) -> list[Answer]:
    """What a load by this plan is answered until it is enough."""
    (folder / "body").write_bytes(b"x" * 1000)

    async def run() -> list[Answer]:
        server = await asyncio.get_running_loop().create_server(lambda: Echo(status, breaks), "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        load = Load(Plan(url, {}, [str(folder / "body")], **plan))
        stop = asyncio.Event()
        running = asyncio.ensure_future(load.run(stop))
        await until(lambda: enough(load.answers), "enough answers")
        stop.set()
        await running
        server.close()
        return load.answers

    return play(run())


def test_a_closed_loop_keeps_each_connection_busy_and_counts_refusals(tmp_path: Path) -> None:
    def each_had_ten(found: list[Answer]) -> bool:
        n_answers = Counter(answer.port for answer in found).values()
        return len(n_answers) == 3 and min(n_answers) >= 10

    found = answers(tmp_path, each_had_ten, status=503, connections=3)
    assert {answer.status for answer in found} == {503}
    assert len({answer.port for answer in found}) == 3


def test_broken_connections_are_told_and_replaced(tmp_path: Path) -> None:
    def n_broken_of(found: list[Answer]) -> int:
        return sum(answer.status == 0 for answer in found)

    found = answers(tmp_path, lambda found: n_broken_of(found) > 2, breaks=True, connections=2)
    n_broken = n_broken_of(found)
    assert len(found) == pytest.approx(3 * n_broken, abs=6)


def test_an_open_loop_sends_what_is_due_whatever_became_of_the_rest(tmp_path: Path) -> None:
    phases = [(200.0, 0.1), (1000.0, 0.1)]
    n_due = len(arrivals_of(phases))
    found = answers(tmp_path, lambda found: len(found) >= n_due, connections=n_due, phases=phases)
    assert len(found) == n_due
    assert {answer.status for answer in found} == {200}


def test_arrivals_come_at_the_rates_of_their_phases() -> None:
    times = arrivals_of([(1000.0, 2.0), (4000.0, 1.0)])
    assert (np.diff(times) >= 0).all()
    assert (times < 2).sum() == pytest.approx(2000, rel=0.15)
    assert (times >= 2).sum() == pytest.approx(4000, rel=0.1)


def test_columns_tell_which_version_said_what() -> None:
    body = b'{"label": "b", "probabilities": {"a": 0.25, "b": 0.75}, "model_version": "v2", "generation": 7}'
    found = columns([Answer(3, 1, 0.0, 1.0, 200, body), Answer(0, 1, 1.0, 2.0, 503, b"{}")], keep=True)
    assert found["label"].tolist() == [1, -1]
    assert found["generation"].tolist() == [7, -1]
    assert found["versions"][found["version"][0]] == "v2"
    assert found["probabilities"][0].tolist() == [0.25, 0.75]


def test_torn_answers_are_seen() -> None:
    expected = np.array([[[0.9, 0.1]], [[0.2, 0.8]]], np.float32)  # (n_versions, n_images, n_classes)
    rows = [  # version, generation, label, probabilities; the first is whole
        (0, 1, 0, (0.9 - TOLERANCE / 2, 0.1 + TOLERANCE / 2)),
        (0, 1, 1, (0.2, 0.8)),  # of the other version's weights
        (0, 1, 1, (0.9, 0.1)),  # of another version's label
        (1, 1, 1, (0.2, 0.8)),  # of another version's generation
    ]
    found = {
        "status": np.full(4, 200),
        "image": np.zeros(4, int),
        "versions": np.array(["v1", "v2"]),
        "version": np.array([row[0] for row in rows]),
        "generation": np.array([row[1] for row in rows]),
        "label": np.array([row[2] for row in rows]),
        "probabilities": np.array([row[3] for row in rows]),
    }
    assert torn(found, expected, ["v1", "v2"], {1: "v1", 2: "v2"}).tolist() == [False, True, True, True]


def test_late_answers_and_the_mixed_window_are_seen() -> None:
    swap = Swap(2, "v2", began=10.0, committed=10.5, reached=10.6, acknowledged_at={1: 10.55}, resident_bytes=[100])
    rows = [  # port, began, ended, generation
        (5, 10.2, 10.52, 1),
        (5, 10.3, 10.51, 2),  # the first of the new: 10 ms before the last of the old
        (5, 10.54, 10.57, 1),  # received late
        (6, 10.54, 10.58, 1),  # of another process
        (5, 10.56, 10.60, 1),  # sent late
    ] + [(5, 11.2 + i / 100, 11.21 + i / 100, 2) for i in range(20)]
    found = dict(zip(("port", "began", "ended", "generation"), np.array(rows).T, strict=True))
    found["status"] = np.full(len(rows), 200)
    seen = judge_swaps(found, [swap], {5: 1, 6: 2})
    assert seen["n_sent_late"] == 1
    assert seen["n_received_late"] == 2
    assert seen["window_seconds"][-1] == pytest.approx(0.09)
    assert seen["p99_steady_seconds"] == pytest.approx(0.01)
    assert seen["n_failed"] == 0


def test_recovery_is_the_first_whole_second_that_is_well() -> None:
    at = np.arange(0, 5, 0.01)
    latency = np.where(at < 0.8, 0.5, 0.02)
    assert recovery_seconds(at, latency, at >= 0, most_p99=0.04) == pytest.approx(0.8, abs=0.06)
    assert recovery_seconds(at, latency, at > 1.5, most_p99=0.04) == pytest.approx(1.55, abs=0.06)
    assert recovery_seconds(at, latency, at > 9, most_p99=0.04) == float("inf")


def test_goodput_counts_what_is_answered_in_time() -> None:
    times = Times(peak=1, calm=2, overload=4, after=2)
    began = np.arange(0, 8, 0.01)
    busy = (began >= 2) & (began < 6)
    status = np.where(busy & (np.arange(len(began)) % 2 == 0), 503, 200)
    latency = np.where(busy & (np.arange(len(began)) % 4 == 1), 3.0, 0.05)  # a quarter comes too late
    found = judge_overload({"began": began, "ended": began + latency, "status": status}, times, peak=100.0)
    assert found["goodput"] == pytest.approx(25, abs=2)
    assert found["refused"] == pytest.approx(50)
    assert found["recovery_seconds"] == 0.0


def test_ratios_are_of_pairs() -> None:
    middle, low, high = ratio([10.0, 22.0, 30.0], [10.0, 20.0, 30.0])
    assert (middle, low) == (1.0, 1.0)
    assert 1.0 <= high <= 1.1
    assert verdict(0.9, least=0.85).endswith("met")
    assert verdict(3.0, most=2).endswith("MISSED")
