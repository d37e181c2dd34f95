"""The latest comparison of methods in the home's evaluations folder; `expunge compare --out` writes it there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

from service.settings import Settings

_TOLD = re.compile(r"<desc>(.*?)</desc>", re.DOTALL)


@dataclass(frozen=True)
class Drawing:
    """One drawing: its file's name, and what it shows in words."""

    name: str
    words: str


@dataclass(frozen=True)
class Comparison:
    """A comparison's folder, when it was made, and its drawings."""

    folder: Path
    made_at: datetime
    drawings: tuple[Drawing, ...]

    def read(self, name: str) -> str | None:
        """A drawing's text; none if there is no such drawing."""
        known = any(drawing.name == name for drawing in self.drawings)
        return (self.folder / name).read_text(encoding="utf-8") if known else None


def latest(settings: Settings) -> Comparison | None:
    """The comparison written last, or none."""
    root = settings.evaluations_folder
    found = [*root.glob("comparison.json"), *root.glob("*/comparison.json")]
    if not found:
        return None
    newest = max(found, key=lambda path: path.stat().st_mtime)
    drawings = tuple(_drawing(path) for path in sorted(newest.parent.glob("comparison-*.svg")))
    return Comparison(newest.parent, datetime.fromtimestamp(newest.stat().st_mtime, UTC), drawings)


def _drawing(path: Path) -> Drawing:
    told = _TOLD.search(path.read_text(encoding="utf-8"))
    return Drawing(path.name, unescape(told[1]) if told else path.stem)
