"""The control law by itself, against a simulated machine, and the governor on a real board."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import namedtuple
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.settings import Settings
from service.store.felt import BOUNDS, N_BUCKETS, Board
from service.store.serving_mark import ServingMark
from service.training import governor
from service.training.governor import LEAST, MOST, Governor, Known, governed, left_over, share_of, turn
from tests.waiting import wait_until


@dataclass
class Machine:
    """Predictions of a closed loop: so many a second, of which a share is slow, each beside trainings and alone.

    A slow one takes ten times as long as the others.
    """

    rate: float
    kept: float  # of the rate beside trainings
    slow: float  # share beside trainings
    seconds: float = 0.004

    def part(self, lasted: float, rng: np.random.Generator, *, beside: bool) -> np.ndarray:
        n = rng.poisson(self.rate * lasted * (self.kept if beside else 1.0))
        n_slow = rng.binomial(n, self.slow if beside else 0.002)
        bucket = int(np.searchsorted(BOUNDS, self.seconds))
        spread = np.bincount(bucket + rng.integers(-3, 4, n - n_slow), minlength=N_BUCKETS)
        return spread + np.bincount(
            np.full(n_slow, int(np.searchsorted(BOUNDS, 10 * self.seconds))), minlength=N_BUCKETS
        )

    def play(self, n_turns: int, seed: int = 0, slowdown: float = 1.5) -> tuple[float, float, float]:
        """Share of time, of slow predictions and of the throughput in the second half of so many turns."""
        rng, known, run, all_seconds = np.random.default_rng(seed), Known(), 0.0, 0.0
        seen = np.zeros((2, N_BUCKETS))
        for number in range(n_turns):
            period = turn(0.0, share_of(known, slowdown))
            paused = period.end - period.until
            counts = np.stack([self.part(paused, rng, beside=False), self.part(period.until, rng, beside=True)])
            known = known.after(counts, period.until, paused)
            if number >= n_turns // 2:
                seen, run, all_seconds = seen + counts, run + period.until, all_seconds + period.end
        slow = seen[:, 5 * self.seconds < BOUNDS].sum() / seen.sum()
        return run / all_seconds, slow, seen.sum() / (all_seconds * self.rate)


@given(st.floats(100, 3000), st.floats(0.2, 1.0), st.floats(0.002, 1.0), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_whatever_trainings_cost_callers_feel_no_more_than_the_bound(rate, kept, slow, seed):
    share, n_slow, throughput = Machine(rate, kept, slow).play(120, seed)
    assert LEAST * 0.9 <= share <= MOST + 1e-9
    assert n_slow <= max(0.01, 1.5 * LEAST * slow + 0.002)
    assert throughput >= 0.9


def test_trainings_that_nobody_feels_run_nearly_all_the_time():
    share, _, _ = Machine(1000, 1.0, 0.002).play(60)
    assert share == pytest.approx(MOST, abs=0.05)


def test_two_threads_of_one_core_leave_trainings_what_the_bound_on_throughput_allows():
    share, n_slow, throughput = Machine(1000, 0.62, 0.02).play(120)
    assert 0.05 <= share <= 0.4
    assert n_slow <= 0.01
    assert throughput >= 0.9


def test_a_wider_bound_lets_trainings_run_more():
    known = Known()
    rng, machine = np.random.default_rng(1), Machine(2000, 1.0, 0.1)
    for _ in range(30):
        parts = [machine.part(0.5, rng, beside=beside) for beside in (False, True)]
        known = known.after(np.stack(parts), 0.5, 0.5)
    assert share_of(known, 1.5) < 0.1
    assert share_of(known, 50.0) == MOST


def test_a_turn_is_long_enough_to_run_in():
    for share in (LEAST, 0.1, MOST):
        period = turn(100.0, share)
        assert period.until - period.start >= 0.05 - 1e-9
        assert (period.until - period.start) / (period.end - period.start) == pytest.approx(share)


@pytest.fixture
def board(tmp_path):
    board = Board(tmp_path / "felt.numbers")
    yield board
    board.close()


def ask(board: Board, now: float, n: int = 100, seconds: float = 0.004) -> None:
    for _ in range(n):
        board.note(now - seconds, now)


def run(governor: Governor, board: Board, seconds: float, *, asked: bool, now: float = 100.0) -> tuple[float, float]:
    """Seconds of trainings in so many seconds of ticks, and the time afterwards."""
    ran, end = 0.0, now + seconds
    while now < end:
        if asked:
            ask(board, now)
        governor.tick(now)
        ran += 0.02 * (board.period.pause_left(now + 0.01) == 0)
        now += 0.02
    return ran, now


def test_nothing_pauses_while_nothing_is_asked(board):
    ran, _ = run(Governor(board, 1.5, "erasures", left=lambda: 1.0), board, 10.0, asked=False)
    assert ran == pytest.approx(10.0, abs=0.05)
    assert board.spent()["erasures", "paused"] == 0.0


def test_trainings_pause_while_predictions_are_asked_for_and_go_on_afterwards(board):
    governor = Governor(board, 1.5, "erasures", left=lambda: 1.0)
    ran, now = run(governor, board, 10.0, asked=True)
    assert 0.3 * 10 < ran < 0.95 * 10
    spent = board.spent()
    assert spent["erasures", "paused"] > 0
    assert spent["erasures", "running"] + spent["erasures", "paused"] == pytest.approx(10.0, abs=0.1)
    ran, now = run(governor, board, 5.0, asked=False, now=now)
    assert ran > 3.5


def test_a_paused_training_runs_without_pause_when_a_deadline_is_near(board):
    governor = Governor(board, 1.5, "erasures", left=lambda: 1.0)
    _, now = run(governor, board, 5.0, asked=True)
    board.press(now)
    ran, now = run(governor, board, 5.0, asked=True, now=now)
    assert ran == pytest.approx(5.0, abs=0.05)
    board.relax()
    ran, _ = run(governor, board, 5.0, asked=True, now=now)
    assert ran < 4.9


def test_where_predictions_leave_nothing_trainings_that_begin_do_not_go_last(board):
    _, now = run(Governor(board, 1.5, "erasures", left=lambda: 0.0), board, 3.0, asked=True)
    assert board.is_busy
    run(Governor(board, 1.5, "erasures", left=lambda: 0.5), board, 3.0, asked=True, now=now)
    assert not board.is_busy


Times = namedtuple("Times", ["user", "nice", "system", "idle", "iowait"])


@pytest.mark.parametrize(
    ("used", "by_trainings", "expected"),
    [
        (Times(1.0, 0.0, 0.5, 0.5, 0.0), 0.0, 0.25),
        (Times(0.5, 1.0, 0.0, 0.0, 0.5), 1.0, 0.75),  # what trainings that go last use would be given up at once
        (Times(0.5, 1.5, 0.0, 0.0, 0.0), 0.0, 0.0),  # another program's nice value leaves them nothing
        (Times(0.0, 2.0, 0.0, 0.0, 0.0), -30.0, 0.0),  # a training has ended, and its seconds are gone
    ],
)
def test_left_is_what_nobody_used_and_what_trainings_that_go_last_did(used, by_trainings, expected):
    begun = Times(100.0, 50.0, 10.0, 400.0, 3.0)
    seen = iter([begun, Times(*np.add(begun, used))])
    own = iter([40.0, 40.0 + by_trainings])
    assert left_over(lambda: next(seen), lambda: next(own))() == pytest.approx(expected)


def test_of_the_children_those_count_that_go_last():
    burn = "import os, sys\nos.nice(int(sys.argv[1]) - os.nice(0))\nwhile True: pass"
    before = governor._of_those_that_go_last()  # of an earlier test's, which may still be there
    with ExitStack() as stack:

        def child(nice: int) -> psutil.Process:
            command = [sys.executable, "-c", burn, str(nice)]
            started = stack.enter_context(subprocess.Popen(command))
            stack.callback(started.kill)
            return psutil.Process(started.pid)

        others = child(0)
        wait_until(lambda: others.cpu_times().user > 0.2, "a child to compute")
        assert governor._of_those_that_go_last() <= before
        child(19)
        wait_until(lambda: governor._of_those_that_go_last() > before + 0.1, "a child that goes last to compute")


def test_the_next_governor_knows_what_the_last_one_learned(board):
    run(Governor(board, 1.5, "erasures", left=lambda: 1.0), board, 5.0, asked=True)
    assert board.known[: 2 * N_BUCKETS].sum() > 100


def test_a_governor_that_was_stopped_does_not_learn_from_what_it_did_not_see(board):
    governor = Governor(board, 1.5, "erasures", left=lambda: 1.0)
    _, now = run(governor, board, 5.0, asked=True)
    before = board.known.copy()
    ask(board, now + 60.0, n=5000, seconds=1.0)
    governor.tick(now + 60.0)
    np.testing.assert_array_equal(board.known, before)


def test_numbers_from_before_the_machine_last_started_pause_nothing(board):
    board.period = governor.Period(1e6, 1e6, 1e6 + 1000.0)
    assert board.period.pause_left(50.0) == 0
    assert board.period.pause_left(1e6 + 1) == 0


def test_one_of_the_machine_governs_and_the_next_takes_over(tmp_path):
    settings = Settings(home=tmp_path, training_priority="auto")
    mark = ServingMark(settings.serving_mark_path)
    mark.hold()
    board = Board(settings.training_board_path)
    with governed(settings):
        with governed(settings):
            wait_until(lambda: board.period.until > time.monotonic(), "somebody to govern")
        ended_at = time.monotonic()
        wait_until(lambda: board.period.start > ended_at, "the other to govern")
    mark.release()


def test_nobody_governs_where_nothing_is_served(tmp_path):
    settings = Settings(home=tmp_path, training_priority="auto")
    with governed(settings):
        assert not settings.training_board_path.exists()
