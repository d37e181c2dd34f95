"""Faces as arrays: pixels, labels and whose they are, as training and scoring read them.

Tested in `tests/unlearning/faces/test_packing.py`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from unlearning.errors import FacesError
from unlearning.faces.dataset import SPLITS
from unlearning.faces.exclusion import last_removal

DIGESTS = "digests.npy"  # beside a pack's images
_CHUNK = 4096  # faces read at a time


@dataclass(frozen=True, eq=False)
class Faces:
    """Faces ready for training.

    Attributes:
        images: uint8 `(n, height, width, channels)`, memory-mapped and read-only when it comes from `pack`.
        labels: int64 `(n,)`, positions in `classes`.
        classes: Names of the labels.
        subject_of: int32 `(n,)`, positions in `people`.
        people: User ids, sorted.
        split_of: uint8 `(n,)`, positions in `SPLITS`.
        manifest_digest: SHA-256 over the table and the content of every file, in hex.
        folder, removal: The data folder, and its last removal when the pack was opened; see `is_intact`.
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    subject_of: np.ndarray
    people: tuple[str, ...]
    split_of: np.ndarray
    manifest_digest: str
    folder: Path | None = None
    removal: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def is_intact(self) -> bool:
        """Whether everything read from the images so far was intact: no removal began since they were opened."""
        return self.folder is None or last_removal(self.folder) == self.removal

    @property
    def subjects(self) -> np.ndarray:
        """User ids `(n,)`, computed at each call; `people` and `subject_of` are cheaper for many faces."""
        return np.array(self.people)[self.subject_of]

    @property
    def splits(self) -> np.ndarray:
        """`(n,)` of train, validation, test, computed at each call."""
        return np.array(SPLITS)[self.split_of]

    def row_digests(self, rows: np.ndarray) -> np.ndarray:
        """Identity of some faces `(k,)`: SHA-256 of the pixels and position of the label, uint8 `(k, 40)`."""
        labels = self.labels[rows].astype("<i8").view(np.uint8).reshape(-1, 8)
        return np.concatenate([self._pixel_digests[rows], labels], axis=1)

    @cached_property
    def _pixel_digests(self) -> np.ndarray:
        """Uint8 `(n, 32)`: those of the pack, memory-mapped, if the images are a pack's."""
        name = getattr(self.images, "filename", None)
        beside = Path(name).with_name(DIGESTS) if name else None
        if beside is not None and beside.exists():
            stored: np.ndarray = np.asarray(np.load(beside, mmap_mode="r", allow_pickle=False))
            if stored.shape == (len(self), 32):
                return stored
        chunks = (np.ascontiguousarray(self.images[i : i + _CHUNK]) for i in range(0, len(self), _CHUNK))
        return np.concatenate([digests_of(chunk) for chunk in chunks]) if len(self) else np.empty((0, 32), np.uint8)

    def where(
        self,
        *,
        split: str | None = None,
        subjects: Collection[str] | None = None,
        without: Collection[str] | None = None,
    ) -> np.ndarray:
        """Positions of the faces in `split`, of `subjects`, and not of `without`; None does not select.

        Returns:
            int64 `(k,)`, ascending.

        Raises:
            FacesError: an unknown split, or one user id where several are expected.
        """
        if split is not None and split not in SPLITS:
            raise FacesError(f"Expected split in {SPLITS}, got {split!r}.")
        if isinstance(subjects, str) or isinstance(without, str):
            raise FacesError("Expected a collection of user ids, got a string; pass [user_id] for one person.")
        chosen = np.ones(len(self), dtype=bool)
        if split is not None:
            chosen &= self.split_of == SPLITS.index(split)
        if subjects is not None:
            chosen &= self._are_of(subjects)
        if without is not None:
            chosen &= ~self._are_of(without)
        return np.flatnonzero(chosen)

    def _are_of(self, subjects: Collection[str]) -> np.ndarray:
        """Bool `(n,)`: whether a face is of one of `subjects`."""
        wanted = set(subjects)
        return np.array([person in wanted for person in self.people], dtype=bool)[self.subject_of]

    def train_subjects(self) -> tuple[str, ...]:
        """User ids of the subjects with training images, sorted."""
        trained = np.zeros(len(self.people), dtype=bool)
        trained[self.subject_of[self.split_of == SPLITS.index("train")]] = True
        return tuple(self.people[person] for person in np.flatnonzero(trained))


def digests_of(pixels: np.ndarray) -> np.ndarray:
    """SHA-256 of each of some images, uint8 `(k, 32)`."""
    flat = pixels.reshape(len(pixels), -1)
    return np.frombuffer(b"".join(sha256(image.data).digest() for image in flat), np.uint8).reshape(-1, 32)
