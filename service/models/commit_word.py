"""Eight bytes in a mapping shared by the serving processes of one machine: the generation to answer with.

The word only makes a swap quick: a process reads it once a batch, at the cost of a memory read. The truth is the
database row, which each heartbeat reads; so a lost or late word delays a swap and never undoes one. Native unsigned
64-bit, aligned: a read never sees half a write.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from service.store.mapped import map_file

_BYTES = 8


class CommitWord:
    """The mapped word; 0 before the first commit."""

    def __init__(self, path: Path) -> None:
        self._map = map_file(path, _BYTES)
        self._view = memoryview(self._map)
        self._word = self._view.cast("Q")

    def read(self) -> int:
        """The generation in the word."""
        return int(self._word[0])

    def advance(self, generation: int) -> None:
        """Write a generation unless the word is there or beyond."""
        self._word[0] = max(self._word[0], generation)

    def close(self) -> None:
        """Unmap; the word stays in its file."""
        self._word.release()
        self._view.release()
        self._map.close()

    def __enter__(self) -> CommitWord:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
