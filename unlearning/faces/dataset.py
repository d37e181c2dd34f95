"""The data folder: `metadata.csv` beside image files, and its rules.

The table follows the Hugging Face *imagefolder* convention: UTF-8, a header, one line for each image.

    file_name,user_id,label,split
    3f9c2a71d04be85c.png,s31,glasses,train

`file_name` is relative to the folder, `user_id` identifies the subject, `label` is the name of the class, `split` is
train, validation or test. Other columns are refused, because nothing here would use or erase them; keep them elsewhere.
Names that begin with a dot are reserved for the folder's own files (packed copies, temporary files).

`read_metadata` checks the table, `unlearning.faces.checking` the files as well. Every failure is a `FacesError` that
names the line and the remedy, and never a subject.
"""

from __future__ import annotations

import csv
import os
import stat
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from unlearning.errors import FacesError
from unlearning.faces.decoding import MAX_BYTES, SUFFIXES
from unlearning.faces.rows import Row, Rows, repeated

METADATA = "metadata.csv"
COLUMNS = ("file_name", "user_id", "label", "split")
SPLITS = ("train", "validation", "test")

_IMPORT = "let `expunge data import` read it and make the data folder"
MOST_LISTED = 20  # files that cannot be used, in one message

Progress = Callable[[int, int], None]  # (done, total)


def read_metadata(folder: Path, *, classes_known: bool = False) -> Rows:
    """Read metadata.csv and check everything that does not need the image files.

    Args:
        classes_known: A model knows its classes, so the table need not hold two of them: an erasure may have removed
            the last subject of one.

    Returns:
        Rows in the order of the table.

    Raises:
        FacesError: no table, not UTF-8, wrong columns, an empty or unclean field, a path that leaves the folder, a
            double name, an unknown split, a subject in two splits, fewer than two classes, no training row.
    """
    rows = read_rows(folder)
    _check_table(rows, classes_known)
    return rows


def count_subjects(folder: Path) -> int | None:
    """Number of subjects in the folder's table, even if it breaks rules between rows; None if it cannot be read."""
    try:
        return len(read_rows(folder).user_ids.values)
    except FacesError:
        return None


def read_rows(folder: Path) -> Rows:
    """Rows of metadata.csv whose fields are clean, without the rules between rows.

    An erasure uses this, because it must also work on a folder that breaks those rules.

    Raises:
        FacesError: no table, not UTF-8, wrong columns, an empty or unclean field, a path that leaves the folder.
    """
    path = folder / METADATA
    try:
        with path.open(encoding="utf-8-sig", newline="") as table:  # a line at a time: tables may be long
            return Rows(_rows(table))
    except FileNotFoundError as error:
        raise FacesError(f"Expected {METADATA} in {folder}; make a data folder with `expunge data`.") from error
    except UnicodeDecodeError as error:
        line = _lines_before_other_text(path.read_bytes())
        raise FacesError(
            "Expected UTF-8 text, found another encoding, as office programs write it where they are not told; save "
            f"the table as “CSV UTF-8”, or {_IMPORT}.",
            row=line,
        ) from error


def _lines_before_other_text(content: bytes) -> int:
    """Line breaks before the first byte that is not UTF-8."""
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return content[: error.start].count(b"\n") + 1
    return content.count(b"\n") + 1  # the file was mended meanwhile


def _rows(table: Iterable[str]) -> Iterator[Row]:
    """Rows of the text of a table."""
    reader = csv.reader(table, strict=True)
    try:
        header = tuple(next(reader, ()))
        _check_header(header)
        order = [header.index(column) for column in COLUMNS]
        yield from (_row(values, order, reader.line_num) for values in reader if values)
    except csv.Error as error:
        raise FacesError(f"Expected comma-separated fields: {error}.", row=reader.line_num) from error


def file_status(folder: Path, row: Row) -> os.stat_result:
    """`lstat` of a row's file, after checking that no part of its path is a link.

    Raises:
        FacesError: no such file, not a plain file, or a symbolic link in its path.
    """
    path = os.fspath(folder)
    try:
        for part in row.file_name.split("/"):
            path = f"{path}/{part}"
            status = os.lstat(path)
            if stat.S_ISLNK(status.st_mode):
                raise FacesError("Expected a file inside the folder, got a symbolic link; copy it in.", row=row.line)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FacesError(_missing(folder, row), row=row.line) from error
    if not stat.S_ISREG(status.st_mode):
        raise FacesError("Expected a plain file, got something else; take the line out.", row=row.line)
    return status


def _missing(folder: Path, row: Row) -> str:
    """What is said of a file that is not there; the row's name is in form NFC, macOS may have written another one."""
    place = folder / row.file_name
    with suppress(OSError):
        if not row.file_name.isascii() and any(
            unicodedata.normalize("NFC", name) == place.name for name in os.listdir(place.parent)
        ):
            return (
                "The file named here has its name in another Unicode form (as macOS writes it); rename the file to NFC."
            )
    return "The file named here is missing; put it back or take the line out."


def read_image(folder: Path, row: Row) -> bytes:
    """Content of a row's file, at most one byte more than an image may have.

    Raises:
        FacesError: as `file_status`, or the file cannot be read.
    """
    size = file_status(folder, row).st_size
    try:
        # Python's file objects cost as much as a small image's bytes, and so would memory for MAX_BYTES each time.
        file = os.open(f"{os.fspath(folder)}/{row.file_name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return _read(file, min(size, MAX_BYTES) + 1)
        finally:
            os.close(file)
    except OSError as error:
        raise FacesError(f"The file named here cannot be read ({error.strerror}).", row=row.line) from error


def _read(file: int, n_bytes: int) -> bytes:
    """At most so many bytes of an open file; fewer only at its end."""
    data = os.read(file, n_bytes)
    while len(data) < n_bytes and (more := os.read(file, n_bytes - len(data))):
        data += more
    return data


def _check_header(header: tuple[str, ...]) -> None:
    missing = [column for column in COLUMNS if column not in header]
    if missing and any(separator in "".join(header) for separator in (";", "\t", "sep=")):
        raise FacesError(
            f"Expected fields separated by commas, found semicolons or tabs; save the table with commas, or {_IMPORT}.",
            row=1,
        )
    if missing:
        raise FacesError(f"Expected the columns {', '.join(COLUMNS)}; {', '.join(missing)} not found.", row=1)
    if set(header) == {*COLUMNS, ""}:
        raise FacesError(
            f"Expected {len(COLUMNS)} columns, found a comma at the end of the line; take it away from every line, or "
            f"{_IMPORT}.",
            row=1,
        )
    if len(header) > len(COLUMNS):
        raise FacesError(
            f"Expected only the columns {', '.join(COLUMNS)}, got {len(header)} columns; keep other data elsewhere, "
            "so that an erasure need not look for it here.",
            row=1,
        )


def _row(values: list[str], order: list[int], line: int) -> Row:
    """One record as a Row, its fields clean."""
    if not any(values):
        raise FacesError("Expected an image, found a row of nothing but commas; take it out.", row=line)
    if len(values) != len(COLUMNS):
        raise FacesError(f"Expected {len(COLUMNS)} fields, got {len(values)}.", row=line)
    file_name, user_id, label, split = (values[position] for position in order)
    row = Row(file_name, user_id, label, split, line)
    for column in COLUMNS:
        value = getattr(row, column)
        if not value:
            raise FacesError(f"Expected a {column}, got nothing; fill it in.", row=line)
        # Two spellings that look alike would be two people, and erasing one would leave the other.
        if not is_clean(value):
            raise FacesError(
                f"Expected {column} without blanks around it or control characters, in Unicode form NFC; mend it.",
                row=line,
            )
    if row.split not in SPLITS:
        raise FacesError(f"Expected a split out of {', '.join(SPLITS)}; mend it.", row=line)
    _check_name(row)
    return row


def is_clean(value: str) -> bool:
    """Whether a field has no surrounding blanks, no control characters, and Unicode form NFC."""
    return value == value.strip() and value.isprintable() and unicodedata.is_normalized("NFC", value)


def left_by_macos(name: str) -> bool:
    """Whether a file, by its path relative to a folder, is one that macOS adds when it copies or packs: no image."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._")


def raise_all(errors: Sequence[FacesError], n: int) -> None:
    """Raise the errors of single files as one, if there are any.

    Args:
        errors: The first ones, at least `MOST_LISTED` if there are so many.
        n: How many there are.
    """
    if n == 1:
        raise errors[0]
    if n:
        listed = [f"\n  {error}" for error in errors[:MOST_LISTED]]
        more = f"\n  … and {n - len(listed)} more" if n > len(listed) else ""
        raise FacesError(f"{n} files cannot be used:{''.join(listed)}{more}")


def _check_name(row: Row) -> None:
    """A relative path in normal form, inside the folder, with the suffix of an image."""
    parts = row.file_name.split("/")
    if {"", ".", ".."} & set(parts) or "\\" in row.file_name:
        raise FacesError(
            "Expected a file_name relative to the folder and inside it, like faces/1.png, without '..', '.', '//' "
            "or backslashes.",
            row=row.line,
        )
    if any(part.startswith(".") for part in parts):
        raise FacesError("Expected a file_name without parts that begin with a dot; rename the file.", row=row.line)
    if not row.file_name.lower().endswith(SUFFIXES):
        raise FacesError(f"Expected a file_name ending in one of {', '.join(SUFFIXES)}.", row=row.line)


def _check_table(rows: Rows, classes_known: bool) -> None:
    """The rules between rows."""
    names: dict[str, Row] = {}
    people: dict[str, Row] = {}
    for row in _doubtful(rows):
        twin = names.setdefault(row.file_name, row)
        if twin is not row:
            raise FacesError(f"This file_name is already in line {twin.line}; take one of the two out.", row=row.line)
        first = people.setdefault(row.user_id, row)
        if first.split != row.split:
            raise FacesError(
                f"This person is in split {row.split} here and in {first.split} in line {first.line}; give all "
                "images of a person one split, else the test set holds people the model has seen.",
                row=row.line,
            )
    if "train" not in rows.splits.values:
        raise FacesError(f"Expected images to train on, got {len(rows)} rows and none with split train.")
    if not classes_known and len(rows.labels.values) < 2:
        raise FacesError("Expected at least two classes, but every row has the same label.")


def _doubtful(rows: Rows) -> Iterator[Row]:
    """All rows whose name may occur twice, and all of subjects in several splits; none in a valid table."""
    splits_of = np.zeros((len(rows.user_ids.values), len(rows.splits.values)), dtype=bool)
    splits_of[rows.user_ids.positions, rows.splits.positions] = True
    in_several = splits_of.sum(axis=1) > 1
    return (rows[index] for index in np.flatnonzero(in_several[rows.user_ids.positions] | repeated(rows.name_hashes())))
