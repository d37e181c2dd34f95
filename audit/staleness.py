"""How much the data have changed since the models of a reference bank were trained and tested.

A bank belongs to one *generation* of the data. When subjects are erased later, the models of all other banks have still
learned from them. Staleness is the share of a bank's subjects that were erased since; a policy limits it
(`Policy.staleness_max`).

A roster shows that erasures are the *only* difference: it holds a digest of each subject's training or test rows, under
the subject's keyed hash. An erasure removes the subject from the roster and counts one more as erased.

Tested in `tests/service/banks/test_staleness.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Roster:
    """The subjects whose rows a bank was trained or tested on.

    Attributes:
        people: digest of each subject's rows, by subject tag (which has no blanks).
        n_gone: number of subjects that were erased since.
    """

    people: Mapping[str, str] = field(default_factory=dict)
    n_gone: int = 0

    @property
    def n_people(self) -> int:
        """Number of subjects when the bank was trained."""
        return len(self.people) + self.n_gone

    def without(self, *tags: str) -> Roster:
        """The roster after the erasure of some subjects; this object itself if none of them is in it."""
        gone = set(tags) & self.people.keys()
        if not gone:
            return self
        left = {tag: digest for tag, digest in self.people.items() if tag not in gone}
        return Roster(left, self.n_gone + len(gone))

    def leavers(self, present: Mapping[str, str], leaving: Collection[str] = ()) -> int | None:
        """Number of subjects of the roster that are not present any more; None if anything else differs.

        Args:
            present: digest of each subject's present rows, by subject tag, without those in `leaving`.
            leaving: tags of subjects that are still present but waiting for erasure.
        """
        n_staying = 0
        for tag, digest in self.people.items():
            if tag not in leaving:
                if present.get(tag) != digest:
                    return None
                n_staying += 1
        return self.n_gone + len(self.people) - n_staying if n_staying == len(present) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values for `from_dict`. The subjects are one text because every erasure rewrites every roster."""
        return {"people": "\n".join(f"{tag} {digest}" for tag, digest in self.people.items()), "n_gone": self.n_gone}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Roster:
        """The roster written by `to_dict`; empty for an empty mapping."""
        lines = re.finditer(".+", str(content.get("people", "")))  # lazily: there may be many
        return cls(dict(line[0].split(" ", 1) for line in lines), int(content.get("n_gone", 0)))


@dataclass(frozen=True)
class Staleness:
    """How many of the subjects that a bank's models were trained and tested on were erased since."""

    n_learned: int = 0
    n_learned_gone: int = 0
    n_tested: int = 0
    n_tested_gone: int = 0

    @property
    def share(self) -> float:
        """The larger of the two shares, in [0, 1]; 0 for a bank trained on the present data."""
        learned = self.n_learned_gone / self.n_learned if self.n_learned else 0.0
        return max(learned, self.n_tested_gone / self.n_tested if self.n_tested else 0.0)

    @property
    def sentence(self) -> str:
        """The counts in words, for reports and certificates."""
        if not self.n_learned_gone and not self.n_tested_gone:
            return "The reference models were trained and tested on the present data."
        sentence = (
            f"Subjects erased since, or waiting for erasure: {self.n_learned_gone} of the {self.n_learned} that the "
            "reference models were trained on"
        )
        if self.n_tested_gone:
            sentence += f", {self.n_tested_gone} of the {self.n_tested} they were tested on"
        return f"{sentence}."
