"""How far the data have moved from those a reference bank's models were trained and tested on.

A bank is of one *generation* of the data. When people are erased later, the models of the other banks have still
learned from them; nothing else about those banks is wrong, and their number says by how much: the share of the people
they learned from who are gone. A policy sets how large that share may be (`Policy.staleness_max`).

Whether people being gone is the *only* difference is settled by rosters: for each person the digest of the very rows
that were trained or tested on, under the person's keyed hash. An erased person is taken out of the roster and counted.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Roster:
    """Whose rows a bank rests on.

    Attributes:
        people: digest of each person's rows, by subject tag (which has no blanks).
        n_gone: people who were in it and were erased since; nothing else is known of them.
    """

    people: Mapping[str, str] = field(default_factory=dict)
    n_gone: int = 0

    @property
    def n_people(self) -> int:
        """People there were in the beginning."""
        return len(self.people) + self.n_gone

    def without(self, *tags: str) -> Roster:
        """The roster after some people's erasure; the very same if none of them is in it."""
        gone = set(tags) & self.people.keys()
        if not gone:
            return self
        left = {tag: digest for tag, digest in self.people.items() if tag not in gone}
        return Roster(left, self.n_gone + len(gone))

    def leavers(self, present: Mapping[str, str], leaving: Collection[str] = ()) -> int | None:
        """How many people of the roster are not among the present ones; None if anything else differs.

        Args:
            present: digest of each person's rows as they are now, by subject tag; without those in `leaving`.
            leaving: tags of people who are still there, but whose erasure waits.
        """
        n_staying = 0
        for tag, digest in self.people.items():
            if tag not in leaving:
                if present.get(tag) != digest:
                    return None
                n_staying += 1
        return self.n_gone + len(self.people) - n_staying if n_staying == len(present) else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; `from_dict` reads it back. One text and not twenty thousand: an erasure rewrites every roster."""
        return {"people": "\n".join(f"{tag} {digest}" for tag, digest in self.people.items()), "n_gone": self.n_gone}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Roster:
        """The roster written by `to_dict`; an empty one of an empty mapping."""
        lines = re.finditer(".+", str(content.get("people", "")))  # one after the other: there may be many
        return cls(dict(line[0].split(" ", 1) for line in lines), int(content.get("n_gone", 0)))


@dataclass(frozen=True)
class Staleness:
    """How many of the people a bank's models learned from, and were tested on, are gone since."""

    n_learned: int = 0
    n_learned_gone: int = 0
    n_tested: int = 0
    n_tested_gone: int = 0

    @property
    def share(self) -> float:
        """The larger of the two shares, in [0, 1]; 0 for a bank trained on the data as they are."""
        learned = self.n_learned_gone / self.n_learned if self.n_learned else 0.0
        return max(learned, self.n_tested_gone / self.n_tested if self.n_tested else 0.0)

    @property
    def sentence(self) -> str:
        """For reports and certificates."""
        if not self.n_learned_gone and not self.n_tested_gone:
            return "The references were trained on exactly the data that are kept."
        sentence = (
            f"Of {self.n_learned} people the references learned from {self.n_learned_gone} were erased since or wait "
            f"to be ({self.n_learned_gone / max(1, self.n_learned):.1%})"
        )
        if self.n_tested_gone:
            sentence += f", and {self.n_tested_gone} of {self.n_tested} they were tested on"
        return f"{sentence}."
