"""A folder of images with a CSV whose columns have other names: an *imagefolder* of your own data.

    image,customer,outcome          read with Columns("image", "customer", "outcome")
    2024/0001.jpg,c-17,approved

Other columns are not imported, nor are rows of files that macOS adds (`._…`, `__MACOSX`).
"""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from unlearning.errors import FacesError
from unlearning.faces.dataset import METADATA, Progress, left_by_macos
from unlearning.faces.rows import Rows
from unlearning.faces.sources.importing import Found, write_found
from unlearning.faces.sources.tables import read_records


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns that hold the image's path, the person, the class, and the split if there is one."""

    file: str = "file_name"
    person: str = "user_id"
    label: str = "label"
    split: str | None = None


def write_folder(
    source: Path,
    folder: Path,
    *,
    table: Path | None = None,
    columns: Columns | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Rows:
    """Write the images a CSV names as a data folder.

    Args:
        source: Folder the paths in the table start from.
        folder: The data folder to make.
        table: The CSV, with a header (`tables`); `metadata.csv` in the source if none is given.
        columns: Names of its columns; without a split column people are split at random, four fifths to train.
        seed: Of that split.
        progress: As `write_found`.

    Raises:
        FacesError: no table, a column that is not there, a row that breaks a rule; names table, line and remedy.
    """
    table, columns = table or source / METADATA, columns or Columns()
    return write_found(folder, read_table(table, source, columns), seed=seed, progress=progress)


def read_table(table: Path, source: Path, columns: Columns, *, split: str | None = None) -> list[Found]:
    """The images of a table, in its order.

    Args:
        split: Of all its images, where no column holds it.

    Raises:
        FacesError: as `write_folder`, of all that can be seen without opening the images.
    """
    wanted = [columns.file, columns.person, columns.label, *([columns.split] if columns.split else [])]
    found: list[Found] = []
    names: dict[str, str] = {}
    spelt = _Spelt(source)
    for record in read_records(table, wanted, "name yours with --file, --person, --label, --split."):
        (name, person, label, *in_column), place = record.values, record.place
        if left_by_macos(name):
            continue
        twin = names.setdefault(unicodedata.normalize("NFC", name), place)
        if twin != place:
            raise FacesError(f"{place}: This image is already in {twin}; take one of the two out.")
        found.append(Found(spelt.inside(name, place), place, person, label, in_column[0] if in_column else split))
    if not found:
        raise FacesError(f"Expected images in {table.name}, found no row below the header.")
    return found


class _Spelt:
    """Files of a source by their names in any Unicode form: macOS writes é as two characters, most tables as one."""

    def __init__(self, source: Path) -> None:
        self._source, self._root = source, source.resolve()
        self._by_form: dict[str, Path] | None = None

    def inside(self, name: str, place: str) -> Path:
        """Path of the file that a row names, which must be inside the source."""
        path = (self._source / name).resolve()
        if not name or not path.is_relative_to(self._root):
            raise FacesError(
                f"{place}: Expected a path inside {self._source.name or self._source}, relative to it; mend it."
            )
        if name.isascii() or path.exists():
            return path
        if self._by_form is None:
            files = self._root.rglob("*")
            self._by_form = {unicodedata.normalize("NFC", os.fspath(file)): file for file in files}
        return self._by_form.get(unicodedata.normalize("NFC", os.fspath(path)), path)
