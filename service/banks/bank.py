"""A reference bank as it is read, what is told of one without reading it, and the right to train one of its models.

Tested in `tests/service/banks/test_store.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from audit.staleness import Staleness
from service.banks.file_format import BankKey
from service.errors import ReferencesError


@dataclass(frozen=True)
class Bank:
    """A bank of N models and n examples.

    views float32 `(N, n_views, n)`, margins of each view, the first of the image as it is; seeds int64,
    retain_accuracy, test_accuracy and seconds float64 `(N,)`; example_ids and subject_tags name the columns.
    """

    key: BankKey
    views: NDArray[np.float32]
    retain_accuracy: NDArray[np.float64]
    test_accuracy: NDArray[np.float64]
    seconds: NDArray[np.float64]
    seeds: NDArray[np.int64]
    example_ids: tuple[str, ...]
    subject_tags: tuple[str, ...]

    @property
    def margins(self) -> NDArray[np.float32]:
        """Margins of the images as they are, `(N, n)`."""
        return self.views[:, 0]

    def columns(self, example_ids: Iterable[str]) -> NDArray[np.intp]:
        """Positions of the examples, in the order asked for.

        Raises:
            ReferencesError: the bank holds no such example.
        """
        position = {example: i for i, example in enumerate(self.example_ids)}
        try:
            return np.array([position[example] for example in example_ids], dtype=np.intp)
        except KeyError as error:
            raise ReferencesError(
                f"The bank {self.key.digest[:12]} has no column for example {error}; build one that has."
            ) from None


@dataclass(frozen=True)
class BankStatus:
    """What there is of a bank, whole rows counted.

    `cost_seconds` is the training time of its models, `age_seconds` since it was begun; `staleness` counts the erased:
    who waits to be erased is not known here.
    """

    key: BankKey
    n_models: int
    n_wanted: int
    n_examples: int
    n_subjects: int
    example_ids: tuple[str, ...]
    subject_tags: frozenset[str]
    size_bytes: int
    cost_seconds: float
    age_seconds: float
    staleness: Staleness


class Claim:
    """The right to train one seed of one bank, until it is released or the process that holds it ends."""

    def __init__(self, path: Path, file: BufferedWriter) -> None:
        self._path, self._file = path, file

    def release(self) -> None:
        """Let others have the seed."""
        self._path.unlink(missing_ok=True)
        self._file.close()
