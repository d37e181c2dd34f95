"""What callers feel beside trainings and without them, and when trainings pause: numbers that all processes share.

Serving processes count how long their predictions took, apart for those beside which nothing trained; the process that
governs trainings (`service.training.governor`) reads the counts and writes when trainings run next; training processes
read that. Native doubles, aligned, each written by one process: a read never sees half of one. Nothing relies on them:
a lost count or a late read only lets trainings run a little more or less.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.store.mapped import map_file

N_BUCKETS: Final = 160
_LEAST_SECONDS, _STEP = 1e-4, math.log(1.1)  # from 0.1 ms up to 400 s, each bucket a tenth wider than the one before
BOUNDS: Final[NDArray[np.float64]] = _LEAST_SECONDS * np.exp(_STEP * np.arange(1, N_BUCKETS + 1))
"""Upper bounds of the buckets in seconds, `(N_BUCKETS,)`."""
PURPOSES: Final = ("erasures", "upkeep", "commands")
LONGEST_SECONDS: Final = 10.0  # of a period; what says more was written before the machine last started

_PLACES = 64  # of serving processes
_START, _UNTIL, _END, _BUSY, _PRESSED = range(5)
_SPENT, _KNOWN = 8, 16  # from here on: seconds run and paused by purpose; what the governor knows
_N_KNOWN = 2 * N_BUCKETS + 8
_FELT = _KNOWN + _N_KNOWN
_SIZE = 8 * (_FELT + _PLACES * 2 * N_BUCKETS)
_PRESSED_SECONDS = 60.0


class Period(NamedTuple):
    """Trainings run from `start` to `until` and pause from there to `end`, in seconds of `time.monotonic`."""

    start: float
    until: float
    end: float

    def pause_left(self, now: float) -> float:
        """Seconds that trainings still pause; 0 while they run."""
        is_known = self.start <= now and self.end - self.start <= LONGEST_SECONDS
        return self.end - now if is_known and self.until <= now < self.end else 0.0


class Board:
    """The mapped numbers.

    Args:
        path: of the shared file.
        place: of a serving process, its own.
    """

    def __init__(self, path: Path, place: int = 0) -> None:
        self._map = map_file(path, _SIZE)
        self._cells = memoryview(self._map).cast("d")
        self._array = np.frombuffer(self._map, np.float64)
        self._mine = _FELT + place % _PLACES * 2 * N_BUCKETS

    def note(self, began: float, ended: float) -> None:
        """A prediction was answered; both in seconds of `time.monotonic`."""
        cells = self._cells
        alone = began >= cells[_UNTIL] or ended < cells[_START]
        seconds = ended - began
        bucket = int(math.log(seconds / _LEAST_SECONDS) / _STEP) if seconds > _LEAST_SECONDS else 0
        cells[self._mine + (0 if alone else N_BUCKETS) + min(bucket, N_BUCKETS - 1)] += 1.0

    def felt(self) -> NDArray[np.float64]:
        """Predictions so far by how long they took, `(2, N_BUCKETS)`: beside no training, and beside some."""
        return self._array[_FELT:].reshape(_PLACES, 2, N_BUCKETS).sum(axis=0)

    @property
    def period(self) -> Period:
        """When trainings run and pause."""
        return Period(self._cells[_START], self._cells[_UNTIL], self._cells[_END])

    @period.setter
    def period(self, period: Period) -> None:
        self._cells[_END], self._cells[_UNTIL], self._cells[_START] = period.end, period.until, period.start

    @property
    def is_busy(self) -> bool:
        """Whether nothing is left of the processor for what runs only where nothing else would."""
        return bool(self._cells[_BUSY])

    @is_busy.setter
    def is_busy(self, busy: bool) -> None:
        self._cells[_BUSY] = float(busy)

    def press(self, now: float) -> None:
        """A deadline is near: nothing pauses for a minute from `now` on."""
        self._cells[_PRESSED] = now

    def relax(self) -> None:
        """No deadline is near."""
        self._cells[_PRESSED] = 0.0

    def is_pressed(self, now: float) -> bool:
        """Whether a deadline is near."""
        return bool(self._cells[_PRESSED]) and 0 <= now - self._cells[_PRESSED] < _PRESSED_SECONDS

    def is_in_hurry(self, now: float) -> bool:
        """Whether trainings should not go last: they would come to nothing, or may not wait any longer."""
        return self.is_busy or self.is_pressed(now)

    def spend(self, purpose: str, run: float, paused: float) -> None:
        """Trainings for a purpose ran and paused for so many seconds."""
        at = _SPENT + 2 * PURPOSES.index(purpose)
        self._cells[at] += run
        self._cells[at + 1] += paused

    def spent(self) -> dict[tuple[str, ...], float | None]:
        """Seconds so far by purpose and by whether trainings were running or paused."""
        return {
            (purpose, what): self._cells[_SPENT + 2 * i + j]
            for i, purpose in enumerate(PURPOSES)
            for j, what in enumerate(("running", "paused"))
        }

    @property
    def known(self) -> NDArray[np.float64]:
        """What the governor keeps for the next one, `(2 · N_BUCKETS + 8,)`, to be changed in place."""
        return self._array[_KNOWN:_FELT]

    def close(self) -> None:
        """Unmap; the numbers stay in their file."""
        del self._array
        self._cells.release()
        self._map.close()
