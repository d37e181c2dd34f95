"""Writing a data folder, for importers and generators.

Images get opaque names, the beginning of the SHA-256 of their content, so that no path contains a user id. The table is
written last and in one step, so a folder with a table is complete, and a killed writer can start again.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from unlearning import files
from unlearning.errors import FacesError
from unlearning.faces.dataset import COLUMNS, METADATA, Progress
from unlearning.faces.rows import Row, Rows

IMAGES = "images"
NEW_TABLE = ".metadata.csv.new"


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image to be written into a data folder.

    Args:
        content: Bytes of a PNG, JPEG or WebP file.
        suffix: Ending of the file, with the dot.
        user_id, label, split: As in the table.
        named_by: Bytes from which the name is derived instead of the content, where an encoder's output may differ
            between versions.
    """

    content: bytes
    suffix: str
    user_id: str
    label: str
    split: str
    named_by: bytes | None = None


def write_images(folder: Path, images: Iterable[NewImage], *, total: int, progress: Progress | None = None) -> Rows:
    """Write images and their table into a new data folder.

    Args:
        folder: Created if needed. Must not contain a table yet.
        images: Taken one at a time, so that memory stays flat.
        total: How many there are, for `progress`.
        progress: Called with (images done, total).

    Returns:
        The rows written.

    Raises:
        FacesError: the folder already is a data folder.
    """
    refuse_existing(folder)
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    taken: dict[str, int] = {}

    def written() -> Iterator[Row]:
        for done, image in enumerate(images, start=1):
            stem = sha256(image.content if image.named_by is None else image.named_by).hexdigest()[:16]
            copy = taken[stem] = taken.get(stem, 0) + 1
            name = f"{IMAGES}/{stem}{'' if copy == 1 else f'-{copy}'}{image.suffix}"
            (folder / name).write_bytes(image.content)
            yield Row(name, image.user_id, image.label, image.split, line=done + 1)
            if progress is not None:
                progress(done, total)

    rows = Rows(written())
    stage_table(folder, rows)
    os.replace(folder / NEW_TABLE, folder / METADATA)
    files.flush_folder(folder)
    return rows


def refuse_existing(folder: Path) -> None:
    """Refuse to write over a data folder, from which subjects may have been erased since.

    Raises:
        FacesError: the folder holds a table.
    """
    if (folder / METADATA).exists():
        raise FacesError(f"{folder} already is a data folder; name another one, or delete it first.")


def stage_table(folder: Path, rows: Iterable[Row]) -> None:
    """Write `rows` to NEW_TABLE, on the disk when this returns; a rename makes it the table."""
    with (folder / NEW_TABLE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows((row.file_name, row.user_id, row.label, row.split) for row in rows)
        file.flush()
        os.fsync(file.fileno())


def split_people(n_people: int, *, seed: int) -> np.ndarray:
    """Random splits by subject: four fifths train, a tenth validation, a tenth test.

    Returns:
        `(n_people,)` array of split names. Validation and test have at least one subject each from three subjects on.
    """
    n_held = max(1, round(0.1 * n_people)) if n_people >= 3 else 0
    splits = np.full(n_people, "train", dtype="<U10")
    order = np.random.default_rng(seed).permutation(n_people)
    splits[order[:n_held]] = "test"
    splits[order[n_held : 2 * n_held]] = "validation"
    return splits
