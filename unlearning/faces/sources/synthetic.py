"""Synthetic people of ten age groups, drawn in code, for any number of faces.

A person has traits that stay (`portraits.py`), one age, and images that differ in pose, light, expression, clothes
and noise of the camera. The label is the age group, `age_0` to `age_9`; images tell it well but not exactly.

Some labels are wrong on purpose, so that there is something to memorise and to forget: a share of the *people* has one
wrong group on all images, a share of the other *images* a wrong group each. A model can get these right only by
training on them.

People are drawn in blocks of fixed size, each from the seed and the number of the block: person 17 looks the same in a
set of twenty and in one of a million, and memory does not grow with the set.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image

from unlearning.errors import FacesError
from unlearning.faces.arrays import Faces
from unlearning.faces.dataset import SPLITS, Progress
from unlearning.faces.rows import Rows
from unlearning.faces.sources.portraits import N_POSE, N_TRAITS, draw_faces
from unlearning.faces.writing import NewImage, refuse_existing, split_people, write_images

N_GROUPS = 10
CLASSES = tuple(f"age_{group}" for group in range(N_GROUPS))
_BLOCK_PEOPLE = 64
_BATCH_PIXELS = 1 << 16  # pixels painted at a time: the layers of a batch stay in the processor's cache
_CAMERA_NOISE = 5.0  # standard deviation in grey levels


@dataclass(frozen=True, slots=True)
class _Settings:
    n_subjects: int
    images_per_subject: int
    size: tuple[int, int]
    seed: int
    person_noise: float
    picture_noise: float

    def __post_init__(self) -> None:
        for name, low in (("n_subjects", 1), ("images_per_subject", 1), ("seed", 0)):
            if getattr(self, name) < low:
                raise FacesError(f"Expected {name} of at least {low}, got {getattr(self, name)}.")
        if min(self.size) < 8:
            raise FacesError(f"Expected size of at least (8, 8) pixels, got {self.size}.")
        for name in ("person_noise", "picture_noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise FacesError(f"Expected {name}={getattr(self, name)} in [0, 1].")


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """Images of up to 64 people: images uint8 `(k, height, width, 3)`, labels int64 `(k,)`, people int64 `(k,)`."""

    images: np.ndarray
    labels: np.ndarray
    people: np.ndarray


def draw(
    *,
    n_subjects: int,
    images_per_subject: int,
    size: tuple[int, int] = (32, 32),
    seed: int = 0,
    person_noise: float = 0.1,
    picture_noise: float = 0.02,
    progress: Progress | None = None,
) -> Faces:
    """Draw faces into memory.

    Args:
        n_subjects: People, with user ids `p0000000`, `p0000001`, ….
        images_per_subject: Images of each.
        size: (height, width) in pixels, at least 8 each.
        seed: Same seed, same faces.
        person_noise: Share of people who carry one wrong label on all images.
        picture_noise: Share of the other images with a wrong label.
        progress: Called with (images done, images in all).

    Returns:
        Faces with uint8 images `(n, height, width, 3)`, four fifths of the people for training and a tenth each for
        validation and test. Files exist only once `write_folder` made them; here the digest is that of the settings.

    Raises:
        FacesError: a setting out of range.
    """
    settings = _Settings(n_subjects, images_per_subject, size, seed, person_noise, picture_noise)
    n = n_subjects * images_per_subject
    images = np.empty((n, *size, 3), dtype=np.uint8)
    labels = np.empty(n, dtype=np.int64)
    start = 0
    for block in _blocks(settings):
        stop = start + len(block.labels)
        images[start:stop], labels[start:stop] = block.images, block.labels
        start = stop
        if progress is not None:
            progress(stop, n)
    people = np.repeat(np.arange(n_subjects, dtype=np.int32), images_per_subject)
    return Faces(
        images=images,
        labels=labels,
        people=tuple(user_id(person) for person in range(n_subjects)),
        subject_of=people,
        split_of=np.array([SPLITS.index(split) for split in split_people(n_subjects, seed=seed)], np.uint8)[people],
        classes=CLASSES,
        manifest_digest=sha256(f"synthetic faces 1 {asdict(settings)}".encode()).hexdigest(),
    )


def write_folder(
    folder: Path,
    *,
    n_subjects: int,
    images_per_subject: int,
    size: tuple[int, int] = (32, 32),
    seed: int = 0,
    person_noise: float = 0.1,
    picture_noise: float = 0.02,
    progress: Progress | None = None,
) -> Rows:
    """Write the faces of `draw` as a data folder of PNG files; memory stays flat.

    Raises:
        FacesError: a setting out of range, or `folder` already is a data folder.
    """
    settings = _Settings(n_subjects, images_per_subject, size, seed, person_noise, picture_noise)
    refuse_existing(folder)
    total = n_subjects * images_per_subject
    return write_images(folder, _new_images(settings), total=total, progress=progress)


def user_id(person: int) -> str:
    """Name of the person with this number, counted from 0."""
    return f"p{person:07d}"


def _new_images(settings: _Settings) -> Iterator[NewImage]:
    splits = split_people(settings.n_subjects, seed=settings.seed)
    for block in _blocks(settings):
        for pixels, label, person in zip(block.images, block.labels, block.people, strict=True):
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, format="PNG", compress_level=1)
            yield NewImage(
                content=png.getvalue(),
                suffix=".png",
                user_id=user_id(int(person)),
                label=CLASSES[label],
                split=str(splits[person]),
                named_by=pixels.tobytes(),
            )


def _blocks(settings: _Settings) -> Iterator[_Block]:
    """All images, person by person."""
    for first in range(0, settings.n_subjects, _BLOCK_PEOPLE):
        yield _block(settings, first, min(_BLOCK_PEOPLE, settings.n_subjects - first))


def _block(settings: _Settings, first: int, n_people: int) -> _Block:
    """Images of `n_people` from number `first` on."""
    k = settings.images_per_subject
    rng = np.random.default_rng([settings.seed, first])
    # Always numbers for a whole block, so that a person does not depend on how many follow.
    traits = rng.random((_BLOCK_PEOPLE, N_TRAITS))[:n_people]
    ages = rng.random(_BLOCK_PEOPLE)[:n_people]
    wrong = rng.random((_BLOCK_PEOPLE, k + 1))[:n_people]
    shift = rng.integers(1, N_GROUPS, size=(_BLOCK_PEOPLE, k + 1))[:n_people]
    poses = rng.random((_BLOCK_PEOPLE, k, N_POSE))[:n_people]

    groups = np.minimum((ages * N_GROUPS).astype(np.int64), N_GROUPS - 1)
    person_wrong = wrong[:, :1] < settings.person_noise
    picture_wrong = ~person_wrong & (wrong[:, 1:] < settings.picture_noise)
    labels = (groups[:, None] + person_wrong * shift[:, :1] + picture_wrong * shift[:, 1:]) % N_GROUPS

    height, width = settings.size
    n = n_people * k
    owner = np.repeat(np.arange(n_people), k)
    flat_poses = poses.reshape(n, N_POSE)
    images = np.empty((n, height, width, 3), dtype=np.uint8)
    step = max(1, _BATCH_PIXELS // (height * width))
    for start in range(0, n, step):
        batch = slice(start, min(start + step, n))
        planes = draw_faces(traits[owner[batch]], ages[owner[batch]], flat_poses[batch], size=settings.size)
        noise = rng.standard_normal(planes.shape[1:], dtype=np.float32)
        planes += noise * np.float32(_CAMERA_NOISE)
        images[batch] = np.clip(planes, 0, 255).astype(np.uint8).transpose(1, 2, 3, 0)
    return _Block(images, labels.reshape(n), first + owner)
