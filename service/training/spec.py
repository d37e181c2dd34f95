"""What a trial is about: packed images, and which rows of them are learned from, scored and forgotten.

Apart from what trains (`service.training.jobs`): planning, looking up and purging need the rows but not torch, whose
import takes several hundred megabytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import DataChangedError
from unlearning.faces import Faces, pack
from unlearning.faces.decoding import Proportions
from unlearning.recipes import Recipe

Rows = NDArray[np.int64]

SAMPLE = 1000
"""Retained images, of whole subjects, that are looked at; a few more where the last subject has many."""


@dataclass(frozen=True)
class PackedImages:
    """Where the packed arrays come from, and what they must be.

    Attributes:
        folder: the data folder; `cache` holds the packed copies.
        size: (height, width) in pixels.
        classes: names in the order of the model's outputs.
        manifest_digest: of the data folder when row numbers were taken.
        proportions: as in the recipe.
    """

    folder: Path
    cache: Path
    size: tuple[int, int]
    channels: int
    classes: tuple[str, ...]
    manifest_digest: str
    proportions: Proportions = "stretch"


@dataclass(frozen=True)
class TrialSpec:
    """What the trials of one bank have in common.

    Attributes:
        images: what the row numbers below speak of.
        recipe: of training, and of what a method may use.
        retain: rows trained on, `(n_retain,)`.
        scored: rows whose margins are wanted, `(n_examples,)`.
        retain_scored: rows of the retain accuracy; the same for both banks of an audit.
        test: rows of the test accuracy.
        device: as in the settings.
        method: unlearning method, or none for training from scratch.
        options: the method's settings as plain values; none for those of the recipe.
        forget: rows to forget, `(n_forget,)`; with a method only.
        oracles: margins of `forget` by models trained without it, `(n_oracles, n_forget)`; for methods that need them.
        base_weights: file of the model to start from; with a method only.
        with_views: whether the margins of every view of the scored images are wanted (`unlearning.faces.views`).
        with_relearning: whether those after relearning of the scored images are wanted too (`unlearning.relearning`).
        sample: retained rows that features and others' margins are taken of (`service.training.looks`); none for
            neither.
    """

    images: PackedImages
    recipe: Recipe
    retain: Rows
    scored: Rows
    retain_scored: Rows
    test: Rows
    device: str
    method: str | None = None
    options: Mapping[str, Any] | None = None
    forget: Rows | None = None
    oracles: NDArray[np.float32] | None = None
    base_weights: Path | None = None
    base_digest: str | None = None
    with_views: bool = False
    with_relearning: bool = False
    sample: Rows | None = None


def sample_of(faces: Faces, retain: Rows) -> Rows:
    """Rows of retained subjects, drawn whole and always the same from the same data, until there are `SAMPLE`.

    Subjects come in an order that does not depend on who else is retained: whoever is erased, or left out of a block,
    leaves the others of the sample where they were.
    """
    people, counts = np.unique(faces.subject_of[retain], return_counts=True)
    order = sorted(range(len(people)), key=lambda i: hashlib.sha256(faces.people[people[i]].encode()).digest())
    chosen = people[order[: int(np.searchsorted(np.cumsum(counts[order]), SAMPLE)) + 1]]
    return np.asarray(retain[np.isin(faces.subject_of[retain], chosen)])


def subjects_of(faces: Faces, sample: Rows) -> NDArray[np.int64]:
    """Positions in `faces.people` of the sample's subjects, ascending."""
    return np.unique(faces.subject_of[sample])


_just_packed: dict[PackedImages, Faces] = {}


def keep_open(images: PackedImages, faces: Faces) -> PackedImages:
    """Open images by arrays that were packed just now: to look at the folder again is to read every file again."""
    _just_packed[images] = faces
    try:
        open_images(images)
    finally:
        _just_packed.clear()
    return images


@lru_cache(maxsize=2)
def open_images(images: PackedImages) -> Faces:
    """The packed arrays, opened once a process. What is made from them counts only if they stayed `intact`.

    Raises:
        DataChangedError: the data folder changed since the row numbers were taken.
    """
    if (packed := _just_packed.get(images)) is not None and packed.is_intact():
        return packed
    faces = pack(
        images.folder, size=images.size, channels=images.channels, proportions=images.proportions, cache=images.cache,
        classes=images.classes,
    )  # fmt: skip
    if faces.manifest_digest != images.manifest_digest:
        raise DataChangedError
    return faces


@contextmanager
def intact(images: PackedImages) -> Iterator[Faces]:
    """The packed arrays for a block whose results count only if nobody was erased meanwhile.

    Raises:
        DataChangedError: somebody was, whatever else went wrong in the block: models that learn from overwritten
            images may well diverge.
    """
    faces = open_images(images)
    try:
        yield faces
    except Exception as error:
        if faces.is_intact():
            raise
        raise DataChangedError from error
    if not faces.is_intact():
        raise DataChangedError


def require_intact(images: PackedImages) -> None:
    """Nothing, as long as the packed arrays that this process opened are whole.

    Raises:
        DataChangedError: they were overwritten since, or the data folder changed before they were opened.
    """
    if not open_images(images).is_intact():
        raise DataChangedError
