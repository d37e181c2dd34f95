"""Languages of the pages that are for people outside: one JSON file each; a file more is a language more.

All files have the keys of `en.json`. `sentences` translates sentences of the signed certificate, by the sentence, and
`methods` the titles of methods; one without a translation is shown as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True)
class Language:
    """What a page says in one language; `code` is its file's name, as in BCP 47."""

    code: str
    texts: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.texts[key]

    def moment(self, at: datetime) -> str:
        """A time in words, in UTC."""
        at = at.astimezone(UTC)
        day = str(at.day) if at.day > 1 else self["first_day"]
        return str(self["moment"]).format(day=day, month=self["months"][at.month - 1], year=at.year, time=f"{at:%H:%M}")

    def sentence(self, signed: str) -> str:
        """A sentence of the certificate."""
        return str(self["sentences"].get(signed, signed))


LANGUAGES: Final = {
    path.stem: Language(path.stem, json.loads(path.read_text(encoding="utf-8")))
    for path in sorted(Path(__file__).parent.glob("*.json"))
}
DEFAULT: Final = LANGUAGES["en"]


def choose(wanted: str, accepted: str) -> Language:
    """The wanted language if there is one, else what the browser likes best (`Accept-Language`), else English."""
    weighed = []
    for part in accepted.split(","):
        tag, _, weight = part.partition(";q=")
        try:
            weighed.append((float(weight or 1), tag.strip().lower().partition("-")[0]))
        except ValueError:
            continue
    liked = [tag for weight, tag in sorted(weighed, key=lambda pair: -pair[0]) if weight > 0]
    return next((LANGUAGES[code] for code in (wanted, *liked) if code in LANGUAGES), DEFAULT)
