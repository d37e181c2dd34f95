"""The model slot of a serving process: which engine answers, and whether this process may answer at all.

The engine is chosen once a batch, on the inference thread. A request is in flight with that engine's generation until
the last byte of its response was handed to the network; the slot counts these, so that a generation is acknowledged
only when no request of an older one is in flight.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from service.errors import TryLaterError
from service.models.commit_word import CommitWord

if TYPE_CHECKING:
    from service.inference.engine import Engine
    from service.serving.in_flight import InFlightGenerations

_FENCED = "This process could not renew its lease and does not answer until it has; try another or wait."
_NO_MODEL = "No model was activated yet; train one first."
_MOST_HOLD_SECONDS = 0.05  # a batch takes less
_LOOK_SECONDS = 0.0005
_LOADING = "The model of generation {} is active but not loaded here yet."


class Moment(NamedTuple):
    """An instant on two clocks: seconds since boot, suspended time included, and seconds of the wall clock."""

    steady: float
    wall: float


def clock() -> Moment:
    """The machine's clocks; either alone can be fooled, by a sleeping machine or by an operator."""
    return Moment(time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


class _Term(NamedTuple):
    number: int
    ends: Moment


class Lease:
    """The right to answer, for a few seconds at a time.

    A lapse ends the *term*: what was computed in an earlier term is never sent, even once the lease was renewed:
    in between, the barrier may have passed without this process.
    """

    def __init__(self, seconds: float, now: Callable[[], Moment] = clock) -> None:
        self.seconds = seconds
        self._now = now
        self._term = _Term(0, Moment(0.0, 0.0))  # exchanged as a whole: read without a lock

    @property
    def term(self) -> int:
        """Number of the running term."""
        return self._term.number

    def covers(self, term: int) -> bool:
        """Whether something of that term may be sent now."""
        running, now = self._term, self._now()
        return running.number == term and now.steady < running.ends.steady and now.wall < running.ends.wall

    def is_running(self) -> bool:
        """Whether this process may answer now."""
        return self.covers(self._term.number)

    def now(self) -> Moment:
        """The instant a renewal counts from; taken before it is written down, so it never lasts longer here."""
        return self._now()

    def renew(self, at: Moment) -> None:
        """To be called after the renewal begun `at` is durable and the pointer was read after that.

        A lapse before this call began a new term, even one shorter than the writing down: others may have seen it.
        """
        number = self._term.number + (not self.is_running())
        self._term = _Term(number, Moment(at.steady + self.seconds, at.wall + self.seconds))


@dataclass(eq=False)
class InFlight:
    """One request: which generation answers it, in which term of the lease, and whether it is over."""

    generation: int = -1  # none yet
    term: int = -1
    over: bool = False


class ModelSlot:
    """The engine that answers, the one staged beside it, and the requests in flight.

    `engine_for` runs on the inference thread only; everything else from any thread.
    """

    def __init__(self, word: CommitWord, lease: Lease, processes: InFlightGenerations | None = None) -> None:
        self._word = word
        self._lease = lease
        self._processes = processes  # what all of this machine have in flight; none: nobody to wait for
        self._answered = 0  # the generation that all here had come to when this process last answered
        self._current: Engine | None = None
        self._staged: Engine | None = None
        self._floor = 0  # highest generation known to be committed; never sinks
        self._in_flight: Counter[int] = Counter()  # generation → responses computed and not yet sent
        self._lock = Lock()

    @property
    def current(self) -> Engine | None:
        """The engine that answered last."""
        return self._current

    @property
    def staged(self) -> Engine | None:
        """The engine that waits for its commit."""
        return self._staged

    @property
    def committed(self) -> int:
        """The generation to answer with, as far as this process knows; 0 for none."""
        return max(self._floor, self._word.read())

    def raise_floor(self, generation: int) -> None:
        """A generation is known to be committed: never answer with an older one."""
        with self._lock:
            self._floor = max(self._floor, generation)

    def stage(self, engine: Engine | None) -> None:
        """Lay an engine beside the one that answers, or take it away."""
        with self._lock:
            self._staged = engine

    def engine_for(self, requests: Iterable[InFlight]) -> Engine:
        """The engine for a batch of requests, which from now on are in flight with its generation.

        Raises:
            TryLaterError: this process may not answer now; see `why_not_ready`.
        """
        term = self._lease.term  # before the engine is chosen: a lapse in between must count against this batch
        if not self._lease.covers(term):
            raise TryLaterError(_FENCED)
        with self._lock:
            if self._current is not None:
                self._tell(self._current.generation)  # before the choice, so that nobody overlooks it
            try:
                engine = self._choose()
                for request in requests:
                    if not request.over:
                        self._forget(request)  # of an earlier batch that did not answer it
                        request.generation, request.term = engine.generation, term
                        self._in_flight[engine.generation] += 1
            finally:
                self._tell()
        return engine

    def wait_for_older(self, generation: int) -> None:
        """On the inference thread, before answers are handed out: wait while other processes have older ones.

        Only the first answers of a generation wait, and not longer than a batch takes.
        """
        if self._processes is None or generation <= self._answered:
            return
        deadline = time.monotonic() + _MOST_HOLD_SECONDS
        while self._processes.others_have_older_than(generation) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS)
        self._answered = generation

    def swap_if_committed(self) -> None:
        """On the inference thread of an idle process: what the next batch would do."""
        with self._lock, suppress(TryLaterError):
            self._choose()

    def may_send(self, request: InFlight) -> bool:
        """Whether a computed response may be sent: always, unless this process was fenced since it was computed."""
        return request.generation < 0 or self._lease.covers(request.term)

    def finish(self, request: InFlight) -> None:
        """The request is over: its response was sent, or never will be."""
        with self._lock:
            if not request.over and self._forget(request):
                self._tell()
            request.over = True

    def has_finished_older_than(self, generation: int) -> bool:
        """Whether every response from now on, also those in flight, is of this generation or a later one."""
        with self._lock:
            current, oldest = self._current, min(self._in_flight, default=generation)
            return current is not None and min(current.generation, oldest) >= generation

    def why_not_ready(self) -> str | None:
        """Why this process does not answer now, in a sentence; none if it does."""
        if not self._lease.is_running():
            return _FENCED
        current, committed = self._current, self.committed
        if not committed:
            return _NO_MODEL
        if current is None or current.generation < committed:
            staged = self._staged
            return None if staged is not None and staged.generation == committed else _LOADING.format(committed)
        return None

    def _tell(self, least: int | None = None) -> None:
        """With the lock: write down the oldest generation in flight, or one that may be in a moment."""
        if self._processes is not None:
            oldest = min(self._in_flight, default=0)
            self._processes.write(oldest or least or 0)

    def _forget(self, request: InFlight) -> bool:
        """With the lock: the request does not count for its generation any more; whether it was the last of it."""
        if request.generation < 0:
            return False
        self._in_flight[request.generation] -= 1
        if self._in_flight[request.generation]:
            return False
        del self._in_flight[request.generation]
        return True

    def _choose(self) -> Engine:
        """With the lock: the engine of the committed generation, and none other."""
        committed = self.committed
        if self._current is not None and self._current.generation >= committed:
            return self._current
        if self._staged is not None and self._staged.generation == committed:
            self._current, self._staged, self._floor = self._staged, None, committed
            return self._current
        raise TryLaterError(_LOADING.format(committed) if committed else _NO_MODEL)
