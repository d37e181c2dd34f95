"""Tables as people have them: CSV as office programs write it, or JSON lines.

A CSV may be UTF-8 with or without a byte order mark, or UTF-16 with one; its fields are separated by commas, semicolons
or tabs, and a first line `sep=;` says by which. Rows without any content, and empty fields beyond the header's, are
passed over. Line breaks are those of CSV, so others (a form feed, U+2028) belong to the field they are in.

Tested in `tests/unlearning/faces/sources/test_imagefolder.py`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearning.errors import FacesError
from unlearning.faces.sources.importing import read_text

_SEPARATORS = ",;\t"


@dataclass(frozen=True, slots=True)
class Record:
    """One row: the values of the columns asked for, in their order, and where it is, like `people.csv, line 3`."""

    values: tuple[str, ...]
    place: str


def read_records(table: Path, wanted: Sequence[str], remedy: str) -> Iterator[Record]:
    """The rows of a table, CSV or, by its name, JSON lines.

    Args:
        wanted: Names of columns, each of which must be there once.
        remedy: How to name other columns.

    Raises:
        FacesError: it cannot be read, a column is not there, or a row has another number of fields.
    """
    text = read_text(table, "a table of images")
    return _json_lines(table, text, wanted, remedy) if table.suffix == ".jsonl" else _csv(table, text, wanted, remedy)


def _csv(table: Path, text: str, wanted: Sequence[str], remedy: str) -> Iterator[Record]:
    said = re.match(r'"?sep=(.)"?\r?\n', text)
    n_before = 0
    if said:
        text, n_before = text[said.end() :], 1
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=said[1] if said else _separator(text, wanted), strict=True
    )
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in wanted if header.count(name) != 1]
        place = f"{table.name}, line {reader.line_num + n_before}"
        if missing:
            raise FacesError(
                f"{place}: Expected the columns {', '.join(wanted)}, each once; "
                f"not so: {', '.join(missing)}. The table has {', '.join(filter(None, header)) or 'none'}; {remedy}"
            )
        at = [header.index(name) for name in wanted]
        for values in reader:
            if not any(values):
                continue
            place = f"{table.name}, line {reader.line_num + n_before}"
            if len(values) < len(header) or any(values[len(header) :]):
                raise FacesError(
                    f"{place}: Expected {len(header)} fields as in the header, got {len(values)}; put fields with "
                    "commas into double quotes."
                )
            yield Record(tuple(values[position] for position in at), place)
    except csv.Error as error:
        raise FacesError(
            f"{table.name}, line {reader.line_num + n_before}: Expected comma-separated fields: {error}."
        ) from error


def _separator(text: str, wanted: Sequence[str]) -> str:
    """The separator with which most of the columns are found; a comma, if that is none."""

    def n_found(separator: str) -> int:
        try:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])
        except csv.Error:
            return 0
        return sum(name.strip() in wanted for name in header)

    return max(_SEPARATORS, key=n_found)  # the first of equals


def _json_lines(table: Path, text: str, wanted: Sequence[str], remedy: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{table.name}, line {number}"
        try:
            record = json.loads(line)
        except ValueError as error:
            raise FacesError(f"{place}: Expected one JSON object a line; mend the line.") from error
        missing = [name for name in wanted if name not in record] if isinstance(record, dict) else list(wanted)
        if missing:
            raise FacesError(f"{place}: Expected {', '.join(wanted)}; not there: {', '.join(missing)}; {remedy}")
        values = [record[name] for name in wanted]
        if not all(isinstance(value, str | int) and not isinstance(value, bool) for value in values):
            raise FacesError(f"{place}: Expected texts or whole numbers as {', '.join(wanted)}; mend the line.")
        yield Record(tuple(map(str, values)), place)
