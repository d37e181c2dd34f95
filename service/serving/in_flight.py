"""The oldest generation that each serving process of this machine has in flight, so that a swap looks like one.

A process changes generations between two of its batches, so another one may be in the middle of an old batch while it
has its first new answer. Callers would see new and old answers mixed for as long as a batch takes. So each process
writes down the oldest generation it has in flight, and holds the first answers of a new generation back until the
others have none of an older one, a batch's time at most.

This is a courtesy: nothing relies on it, the barrier least of all, and a process that does not say anything any more is
waited for only a moment. Native unsigned 64-bit, aligned: process number and generation are read together.
"""

from __future__ import annotations

import os
from pathlib import Path

from service.store.mapped import map_file

_CELLS = 256
_GENERATION_BITS = 32


class InFlightGenerations:
    """The mapped cells of all processes.

    Args:
        path: of the shared file.
        place: this process's own cell; processes that live together have different ones.
        pid: of this process.
    """

    def __init__(self, path: Path, place: int, pid: int) -> None:
        self._map = map_file(path, 8 * _CELLS)
        self._view = memoryview(self._map)
        self._cells = self._view.cast("Q")
        self._place = place % _CELLS
        self._sign = pid << _GENERATION_BITS
        self._written = -1
        self.write(0)

    def write(self, generation: int) -> None:
        """Write down the oldest generation that this process has in flight; 0 for none."""
        if generation != self._written:
            self._cells[self._place] = self._sign | generation
            self._written = generation

    def others_have_older_than(self, generation: int) -> bool:
        """Whether another process that lives has something older in flight."""
        for place, cell in enumerate(self._cells.tolist()):
            if cell and place != self._place:
                theirs = cell & ((1 << _GENERATION_BITS) - 1)
                if 0 < theirs < generation and _lives(cell >> _GENERATION_BITS):
                    return True
        return False

    def close(self) -> None:
        """Take this process's cell away and unmap."""
        self._cells[self._place] = 0
        self._cells.release()
        self._view.release()
        self._map.close()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
