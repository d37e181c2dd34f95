"""The glossary's table: a term stands once, in order, with a meaning, and the code it names is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECTIONS = (ROOT / "docs" / "glossary.md").read_text().split("\n## ")[1:]
ROWS = [
    [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")][
        1:
    ]
    for section in SECTIONS
]


def test_every_term_has_a_meaning_and_code_that_exists() -> None:
    for term, meaning, _, where in (row for rows in ROWS for row in rows):
        assert meaning.endswith("."), term
        paths = re.findall(r"`([^`]+)`", where)
        assert paths, term
        assert [path for path in paths if not (ROOT / path).is_file()] == [], term


def test_every_term_stands_once_and_in_order() -> None:
    terms = [[row[0].lower() for row in rows] for rows in ROWS]
    assert all(section == sorted(section) for section in terms)
    flat = [term for section in terms for term in section]
    assert len(flat) == len(set(flat)) > 50
