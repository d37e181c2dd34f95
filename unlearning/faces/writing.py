"""Writing a data folder: what the adapters share.

Images get opaque names, the beginning of the SHA-256 of their content: no person's id stands in a path. The table comes
last and in one move, so that a folder with a table is a whole folder, and a killed writer can simply start again.
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
class Picture:
    """One picture on its way into a data folder.

    Args:
        content: Bytes of a PNG, JPEG or WebP file.
        suffix: Ending of the file, with the dot.
        user_id, label, split: As in the table.
        named_by: What the name is drawn from where it is not the content: an encoder's output may differ between
            versions, the picture it was made from does not.
    """

    content: bytes
    suffix: str
    user_id: str
    label: str
    split: str
    named_by: bytes | None = None


def write_pictures(folder: Path, pictures: Iterable[Picture], *, total: int, progress: Progress | None = None) -> Rows:
    """Write pictures and their table into a new data folder.

    Args:
        folder: Made if it is not there. Must not hold a table yet.
        pictures: Taken one at a time, so that memory stays flat.
        total: How many there are, for `progress`.
        progress: Called with (pictures done, total).

    Returns:
        The rows written.

    Raises:
        FacesError: the folder already is a data folder.
    """
    refuse_existing(folder)
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    taken: dict[str, int] = {}

    def written() -> Iterator[Row]:
        for done, picture in enumerate(pictures, start=1):
            stem = sha256(picture.content if picture.named_by is None else picture.named_by).hexdigest()[:16]
            copy = taken[stem] = taken.get(stem, 0) + 1
            name = f"{IMAGES}/{stem}{'' if copy == 1 else f'-{copy}'}{picture.suffix}"
            (folder / name).write_bytes(picture.content)
            yield Row(name, picture.user_id, picture.label, picture.split, line=done + 1)
            if progress is not None:
                progress(done, total)

    rows = Rows(written())
    stage_table(folder, rows)
    os.replace(folder / NEW_TABLE, folder / METADATA)
    files.flush_folder(folder)
    return rows


def refuse_existing(folder: Path) -> None:
    """Keep a data folder from being written over: people may have been erased from it since.

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
    """Splits by person: four fifths train, a tenth validation, a tenth test, drawn at random.

    Returns:
        `(n_people,)` array of split names. Validation and test have at least one person each from three people on.
    """
    n_held = max(1, round(0.1 * n_people)) if n_people >= 3 else 0
    splits = np.full(n_people, "train", dtype="<U10")
    order = np.random.default_rng(seed).permutation(n_people)
    splits[order[:n_held]] = "test"
    splits[order[n_held : 2 * n_held]] = "validation"
    return splits
