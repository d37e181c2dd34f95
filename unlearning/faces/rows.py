"""Rows of the table, stored in columns: as Python objects a long table would need more memory than its images.

Subjects, labels and splits occur in many rows, so each is stored once and rows hold its number in as few bytes as
possible. Names are concatenated in long byte strings. A row takes about a dozen bytes beside its name; a `Row` object
is made on access.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import SupportsIndex, overload

import numpy as np
from numpy.typing import DTypeLike

_PIECE = 4096  # rows taken at a time


@dataclass(frozen=True, slots=True)
class Row:
    """One image of the table; `line` is its line in metadata.csv (the header is line 1)."""

    file_name: str
    user_id: str
    label: str
    split: str
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A field of few different values.

    Attributes:
        values: Those there are, in the order in which they come first.
        positions: Unsigned `(n,)`, each row's value as its position in `values`.
    """

    values: tuple[str, ...]
    positions: np.ndarray

    def positions_in(self, names: Sequence[str], dtype: DTypeLike) -> np.ndarray:
        """`(n,)` of `dtype`: each row's value as its position in `names`, which hold them all."""
        position = {name: number for number, name in enumerate(names)}
        return np.array([position[value] for value in self.values], dtype)[self.positions]

    def first(self, value: str) -> int:
        """The first row that has one of `values`."""
        return int(np.argmax(self.positions == self.values.index(value)))


@dataclass(frozen=True, slots=True, eq=False)
class _Piece:
    """Names, their ends `(k,)` and lines `(k,)` of up to `_PIECE` rows.

    A single growing column would be copied repeatedly, and the copies would fragment memory.
    """

    names: bytes
    ends: np.ndarray
    lines: np.ndarray


class Rows(Sequence[Row]):
    """An immutable sequence of `Row`; equal to any other sequence of the same rows.

    Attributes:
        user_ids, labels, splits: The fields of few different values.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self._pieces: list[_Piece] = []
        numbers: tuple[dict[str, int], ...] = ({}, {}, {})
        positions: tuple[list[np.ndarray], ...] = ([], [], [])
        left = iter(rows)
        while some := list(islice(left, _PIECE)):
            names = [row.file_name.encode() for row in some]
            ends, lines = np.cumsum([len(name) for name in names]), np.array([row.line for row in some])
            self._pieces.append(_Piece(b"".join(names), _compact(ends), _compact(lines)))
            values = ((row.user_id, row.label, row.split) for row in some)
            for number, found, column in zip(numbers, positions, zip(*values, strict=True), strict=True):
                found.append(_compact(np.array([number.setdefault(value, len(number)) for value in column])))
        self._n = sum(len(piece.ends) for piece in self._pieces)
        self.user_ids, self.labels, self.splits = (
            Column(tuple(number), np.concatenate([np.empty(0, np.uint8), *found]))
            for number, found in zip(numbers, positions, strict=True)
        )

    def __len__(self) -> int:
        return self._n

    @overload
    def __getitem__(self, index: SupportsIndex) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: SupportsIndex | slice) -> Row | tuple[Row, ...]:
        chosen = range(len(self))[index]
        return self._row(chosen) if isinstance(chosen, int) else tuple(map(self._row, chosen))

    def __iter__(self) -> Iterator[Row]:
        return map(self._row, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def _row(self, index: int) -> Row:
        people, labels, splits = self.user_ids, self.labels, self.splits
        return Row(
            self._name(index),
            people.values[people.positions[index]],
            labels.values[labels.positions[index]],
            splits.values[splits.positions[index]],
            int(self._pieces[index // _PIECE].lines[index % _PIECE]),
        )

    def _name(self, index: int) -> str:
        piece, at = self._pieces[index // _PIECE], index % _PIECE
        return piece.names[piece.ends[at - 1] if at else 0 : piece.ends[at]].decode()

    def name_hashes(self) -> np.ndarray:
        """int64 `(n,)`: Python's hash of each name, for this process only."""
        return np.fromiter(map(hash, map(self._name, range(len(self)))), np.int64, len(self))


def _compact(numbers: np.ndarray) -> np.ndarray:
    """The numbers, none below 0, in as few bytes as hold the largest."""
    return numbers.astype(np.min_scalar_type(numbers.max(initial=0)))


def repeated(keys: np.ndarray) -> np.ndarray:
    """Bool `(n,)`: whether each of the keys `(n,)` occurs more than once; needs one sorted copy where none does."""
    ordered = np.sort(keys)
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    return np.isin(keys, twice) if len(twice) else np.zeros(len(keys), dtype=bool)
