"""How much trainings run beside predictions: as much as callers hardly feel.

While predictions are asked for, trainings run and pause in turns of a second. Predictions beside a running training
are compared with those beside none, on this machine and now: from the difference follows the share of time in which
trainings may run, so that the 99th percentile stays below `EXPUNGE_TRAINING_SLOWDOWN` times what it is without them and
the throughput above `THROUGHPUT_MIN` of it. While nothing is asked they run all the time, and so they do while the
worker says that a deadline is near.

One process of the machine governs, the first of those that have trainings; who carries them out looks at the board
and pauses (`service.training.child`). Loads no torch.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from service.settings import Settings
from service.store.felt import BOUNDS, N_BUCKETS, Board, Period
from service.store.serving_mark import is_served

THROUGHPUT_MIN = 0.95  # a little more than the 0.9 that is promised
SLOW_MAX = 0.006  # of predictions slower than the bound; 0.01 is what a 99th percentile allows
LEAST, MOST = 0.01, 0.9  # share of time while predictions are asked for: trainings end, and there is a comparison
TICK_SECONDS = 0.02
_PERIOD_SECONDS, _RUN_SECONDS = 1.0, 0.05  # of a turn, and the shortest that trainings run in one
_QUIET_SECONDS = 1.0  # without a prediction: nothing is asked
_FROZEN_SECONDS = 0.5  # between two ticks: this process was stopped, what it counted is of no use
_KEPT, _MEMORY = 0.95, 3000.0  # of what is known, each turn; more where there are few predictions
_FEW = 50.0  # predictions that say too little by themselves
LOWEST = 19  # the nice value of trainings that go last
_LEFT_MIN, _LEFT_ENOUGH = 0.02, 0.06  # of the processor while trainings pause

_of_this_process = {"purpose": "commands"}


def train_for(purpose: str) -> None:
    """Say once what this process's trainings are for, one of `service.store.felt.PURPOSES`."""
    _of_this_process["purpose"] = purpose


def yields(settings: Settings) -> bool:
    """Whether trainings stand back behind predictions."""
    return settings.training_priority == "auto" and is_served(settings.serving_mark_path)


@dataclass(frozen=True)
class Known:
    """Predictions of the last turns, older ones counting less.

    Attributes:
        counts: by how long they took `(2, N_BUCKETS)`: beside no training, and beside some.
        seconds: that they came in `(2,)`.
    """

    counts: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, N_BUCKETS)))
    seconds: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2))

    def after(self, counts: NDArray[np.float64], run: float, paused: float) -> Known:
        """With those of one more turn."""
        n = counts.sum()
        if not n:
            return self
        kept = max(_KEPT, 1.0 - n / _MEMORY)
        lasting = float(counts.sum(0) @ BOUNDS / n)  # a prediction that began in one part counts for the other, too
        seconds = np.array([max(0.0, paused - lasting), run + min(lasting, paused)])
        return Known(kept * self.counts + counts, kept * self.seconds + seconds)


def share_of(known: Known, slowdown: float, *, start: float = 0.5) -> float:
    """The share of time that trainings may run.

    Of all predictions at most `SLOW_MAX` may be slower than `slowdown` times the 99th percentile of those beside no
    training, and the throughput must be `THROUGHPUT_MIN` of theirs. With the shares and rates of both kinds that says
    how much of either kind there may be.

    Args:
        start: share while too little is known.
    """
    alone, beside = known.counts
    if alone.sum() < _FEW or beside.sum() < _FEW:
        return start
    bound = slowdown * BOUNDS[np.searchsorted(np.cumsum(alone), 0.99 * alone.sum())]
    slow_alone, slow_beside = (counts[bound < BOUNDS].sum() / counts.sum() for counts in (alone, beside))
    share = MOST
    if slow_beside > max(SLOW_MAX, slow_alone):
        share = min(share, (SLOW_MAX - slow_alone) / (slow_beside - slow_alone))
    rates = known.counts.sum(1) / np.maximum(known.seconds, _RUN_SECONDS)
    if rates[1] < THROUGHPUT_MIN * rates[0]:
        share = min(share, (1.0 - THROUGHPUT_MIN) / (1.0 - rates[1] / rates[0]))
    return max(LEAST, share)


def turn(now: float, share: float) -> Period:
    """The next turn: longer where trainings run so little that they could not begin anything."""
    seconds = max(_PERIOD_SECONDS, _RUN_SECONDS / share)
    return Period(now, now + share * seconds, now + seconds)


class Governor:
    """Says on the board when trainings run. `tick` is called often, by a thread of `governed`.

    Args:
        left: as `left_over` gives.
    """

    def __init__(
        self,
        board: Board,
        slowdown: float,
        purpose: str,
        *,
        left: Callable[[], float] | None = None,
    ) -> None:
        self._board, self._slowdown, self._purpose = board, slowdown, purpose
        self._left = left or left_over()
        kept = board.known
        self._known = Known(kept[: 2 * N_BUCKETS].reshape(2, N_BUCKETS).copy(), kept[2 * N_BUCKETS :][:2].copy())
        self._felt = self._seen = board.felt()
        self._asked_at = self._ticked_at = self._looked_at = -np.inf
        self._period: Period | None = None  # the turn under way, while predictions are asked for
        self._was_paused = False

    def tick(self, now: float) -> None:
        """Begin the next turn if the last is over, or let trainings run if nobody asks for anything."""
        felt, since = self._board.felt(), now - self._ticked_at
        if felt.sum() != self._seen.sum():
            self._asked_at, self._seen = now, felt
        is_paused = self._board.period.pause_left(now) > 0
        if since < _FROZEN_SECONDS:
            self._board.spend(self._purpose, *((0.0, since) if is_paused else (since, 0.0)))
        else:
            self._period = None
        self._ticked_at = now
        if now - self._asked_at > _QUIET_SECONDS or self._board.is_pressed(now):
            self._period = None
            if now - self._looked_at > _PERIOD_SECONDS:
                self._look(now)
            self._board.period = Period(now, now + _FROZEN_SECONDS, now + _FROZEN_SECONDS)
            return
        if self._period is not None and now < self._period.end:
            if is_paused and not self._was_paused:
                self._left()  # looked at in pauses alone
            self._was_paused = is_paused
            return
        if self._period is not None:
            self._learn(self._period, felt)
        self._felt = felt
        self._period = turn(now, self._share())
        self._board.period = self._period
        self._was_paused = False

    def _learn(self, period: Period, felt: NDArray[np.float64]) -> None:
        self._known = self._known.after(felt - self._felt, period.until - period.start, period.end - period.until)
        if self._look(period.end):
            self._known = Known(self._known.counts * [[1.0], [0.0]], self._known.seconds * [1.0, 0.0])
        self._board.known[: 2 * N_BUCKETS] = self._known.counts.ravel()
        self._board.known[2 * N_BUCKETS :][:2] = self._known.seconds

    def _look(self, now: float) -> bool:
        """Write down whether anything is left of the processor; true if that is new."""
        left, was_busy, self._looked_at = self._left(), self._board.is_busy, now
        self._board.is_busy = left < (_LEFT_ENOUGH if was_busy else _LEFT_MIN)
        return self._board.is_busy != was_busy

    def _share(self) -> float:
        return share_of(self._known, self._slowdown, start=0.1 if self._board.is_busy else 0.5)


@contextmanager
def governed(settings: Settings) -> Iterator[None]:
    """Around trainings in other processes: somebody of this machine says when they run, if they stand back."""
    if not yields(settings):
        yield
        return
    stop = threading.Event()
    thread = threading.Thread(target=_govern, args=(settings, stop), name="governor", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _govern(settings: Settings, stop: threading.Event) -> None:
    path = settings.training_board_path
    board = Board(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    governor: Governor | None = None
    try:
        while not stop.wait(TICK_SECONDS):
            if governor is None and _took(descriptor):
                governor = Governor(board, settings.training_slowdown, _of_this_process["purpose"])
            if governor is not None:
                governor.tick(time.monotonic())
    finally:
        os.close(descriptor)  # and the lock with it
        board.close()


def _took(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def left_over(
    times: Callable[[], Any] = psutil.cpu_times, own: Callable[[], float] | None = None
) -> Callable[[], float]:
    """A function that says which share of the processor's time was left since it was last asked.

    Left is what nobody used, and what this process's trainings used that go last. What other programs with a nice value
    use is not: beside them what goes last gets next to nothing.

    Args:
        times: as `psutil.cpu_times`.
        own: processor seconds of those trainings so far.
    """
    own = own or _of_those_that_go_last
    last, last_own = times(), own()

    def left() -> float:
        nonlocal last, last_own
        now, now_own = times(), own()
        spent = np.array(now) - np.array(last)
        unused = spent[[now._fields.index(name) for name in ("idle", "iowait") if name in now._fields]].sum()
        given = max(0.0, now_own - last_own)  # less than before: one of them has ended
        last, last_own = now, now_own
        return float(min(1.0, (unused + given) / max(spent.sum(), 1e-9)))

    return left


def _of_those_that_go_last() -> float:
    total = 0.0
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error), child.oneshot():
            if child.nice() == LOWEST:
                total += child.cpu_times().user + child.cpu_times().system
    return total
