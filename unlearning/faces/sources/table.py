"""A folder of images with a CSV whose columns have other names: an *imagefolder* of your own data.

    image,customer,outcome          read with Columns("image", "customer", "outcome")
    2024/0001.jpg,c-17,approved

Other columns are not imported, nor are rows of files that macOS adds (`._…`, `__MACOSX`).
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from unlearning.errors import FacesError
from unlearning.faces.dataset import METADATA, Progress, left_by_macos
from unlearning.faces.rows import Rows
from unlearning.faces.sources.importing import Found, read_lines, write_found


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
        table: The CSV, UTF-8 with a header; `metadata.csv` in the source if none is given.
        columns: Names of its columns; without a split column people are split at random, four fifths to train.
        seed: Of that split.
        progress: As `write_found`.

    Raises:
        FacesError: no table, a column that is not there, a row that breaks a rule; names table, line and remedy.
    """
    table, columns = table or source / METADATA, columns or Columns()
    return write_found(folder, read_table(table, source, columns), seed=seed, progress=progress)


def read_table(table: Path, source: Path, columns: Columns) -> list[Found]:
    """The images of a table, in its order.

    Raises:
        FacesError: as `write_folder`, of all that can be seen without opening the images.
    """
    text = "\n".join(read_lines(table, "a table of images"))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    wanted = [columns.file, columns.person, columns.label, *([columns.split] if columns.split else [])]
    found: list[Found] = []
    names: dict[str, str] = {}
    try:
        header = next(reader, [])
        missing = [name for name in wanted if header.count(name) != 1]
        if missing:
            raise FacesError(
                f"{table.name}, line 1: Expected the columns {', '.join(wanted)}, each once; not so: "
                f"{', '.join(missing)}. The table has {', '.join(header) or 'none'}; name yours with --file, --person, "
                "--label, --split."
            )
        at = [header.index(name) for name in wanted]
        for values in reader:
            if not values:
                continue
            place = f"{table.name}, line {reader.line_num}"
            if len(values) != len(header):
                raise FacesError(
                    f"{place}: Expected {len(header)} fields as in the header, got {len(values)}; put fields with "
                    "commas into double quotes."
                )
            name, person, label, *split = (values[position] for position in at)
            if left_by_macos(name):
                continue
            twin = names.setdefault(name, place)
            if twin != place:
                raise FacesError(f"{place}: This image is already in {twin}; take one of the two out.")
            found.append(Found(_inside(source, name, place), place, person, label, split[0] if split else None))
    except csv.Error as error:
        raise FacesError(f"{table.name}, line {reader.line_num}: Expected comma-separated fields: {error}.") from error
    if not found:
        raise FacesError(f"Expected images in {table.name}, found no row below the header.")
    return found


def _inside(source: Path, name: str, place: str) -> Path:
    """Path of the file that a row names, which must be inside the source."""
    path = (source / name).resolve()
    if not name or not path.is_relative_to(source.resolve()):
        raise FacesError(f"{place}: Expected a path inside {source.name or source}, relative to it; mend it.")
    return path
