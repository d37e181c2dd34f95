"""What the files of a reference bank hold: its key, its manifest, and one row a finished model.

A row is a fixed header, float32 margins, and the SHA-256 of both; the header binds it to its bank (digest of the key)
and to the names of its columns (digest of the layout). The margins are those of the images as they are and, where the
key's statistic says so, of the further views of each (`unlearning.faces.views`), one view after the other. Whatever is
cut off, altered, of another bank or of another set of views decodes to None.

Tested in `tests/service/banks/test_store.py`.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray

from audit.proof.log import canonical_json
from audit.staleness import Roster
from audit.statistics.features import DESCRIPTORS
from audit.statistics.features import VERSION as DESCRIPTORS_VERSION
from unlearning.faces.views import VERSION as VIEWS_VERSION
from unlearning.faces.views import VIEWS
from unlearning.relearning import STEPS
from unlearning.relearning import VERSION as RELEARNING_VERSION

_MAGIC = b"EXPROW1\n"
_HEADER = struct.Struct("<8s32s32sqqddd")  # magic, key, layout, seed, n_examples, retain and test accuracy, seconds

MARGIN = "margin"
"""Statistic of banks that hold margins of the images as they are."""
OUT = f"margin, views {VIEWS_VERSION}"
"""Statistic of reference banks: models trained without the subjects of the columns."""
IN = f"margin with everybody, views {VIEWS_VERSION}"
"""Statistic of the bank of models that learned from everybody (`service.banks.originals`)."""
RELEARNED = f"{OUT}, relearning {RELEARNING_VERSION}"
"""Statistic of the banks of qualifications: as `OUT`, and then the margins after each step of `unlearning.relearning`.
"""
FEATURES = f"descriptors {DESCRIPTORS_VERSION}, views {VIEWS_VERSION}"
"""Statistic of banks that hold descriptors of features, a row each in the place of a view (`service.banks.looks`)."""
OTHERS = "margins of retained subjects, 1"
"""Statistic of banks that hold one margin for each retained subject that was looked at, likewise."""
BESIDE = (FEATURES, OTHERS)
"""Statistics of banks that lie beside another one, of the same models."""
_N_VIEWS = {OUT: len(VIEWS), IN: len(VIEWS), RELEARNED: len(VIEWS) + STEPS, FEATURES: len(DESCRIPTORS)}


@dataclass(frozen=True)
class BankKey:
    """Everything a bank's numbers depend on. Digests are SHA-256 in hex.

    Args:
        recipe_digest: of the training recipe.
        code_version: of the code that trains and scores.
        training_digest: of the rows the references were trained on (data without the block, generation included).
        test_digest: of the rows that give test accuracy.
        statistic: what a column holds.
        dtype: in which it is stored.
    """

    recipe_digest: str
    code_version: str
    training_digest: str
    test_digest: str
    statistic: str = MARGIN
    dtype: str = "float32"

    @property
    def n_views(self) -> int:
        """Numbers an example: a margin for each view or that of the image as it is, those after relearning as well; or
        its descriptors."""
        return _N_VIEWS.get(self.statistic, 1)

    @property
    def with_relearning(self) -> bool:
        """Whether there are margins after relearning."""
        return self.statistic == RELEARNED

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the key: the bank's name."""
        return sha256(canonical_json(asdict(self))).hexdigest()


@dataclass(frozen=True)
class ReferenceRow:
    """One finished reference model: margins float32 `(n_views, n_examples)`, accuracies in [0, 1], training seconds.

    Where there is one view, margins `(n_examples,)` will do.
    """

    seed: int
    example_ids: tuple[str, ...]
    margins: NDArray[np.float32]
    retain_accuracy: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Manifest:
    """Columns of a bank (example ids, subject tags), the number of models wanted, when it was begun, and on whose rows
    its models were trained and tested."""

    key: BankKey
    example_ids: tuple[str, ...]
    subject_tags: tuple[str, ...]
    n_wanted: int
    begun_at: datetime
    layout: bytes  # SHA-256 of the names of the columns
    learned: Roster = field(default_factory=Roster)
    tested: Roster = field(default_factory=Roster)

    @classmethod
    def of(
        cls,
        key: BankKey,
        example_ids: tuple[str, ...],
        subject_tags: tuple[str, ...],
        *,
        n_wanted: int,
        begun_at: datetime,
        learned: Roster = Roster(),  # noqa: B008  (frozen)
        tested: Roster = Roster(),  # noqa: B008
    ) -> Manifest:
        """Manifest of a new bank."""
        layout = sha256(canonical_json([example_ids, subject_tags])).digest()
        return cls(key, example_ids, subject_tags, n_wanted, begun_at, layout, learned, tested)

    def keeping(self, columns: list[int]) -> Manifest:
        """The same bank with some of its columns."""
        examples, tags = (tuple(names[i] for i in columns) for names in (self.example_ids, self.subject_tags))
        return Manifest.of(
            self.key, examples, tags, n_wanted=self.n_wanted, begun_at=self.begun_at, learned=self.learned,
            tested=self.tested,
        )  # fmt: skip

    def without(self, tags: Iterable[str]) -> Manifest:
        """The same columns, after people who were trained or tested on were erased."""
        gone = tuple(tags)
        return replace(self, learned=self.learned.without(*gone), tested=self.tested.without(*gone))

    def encode(self) -> bytes:
        """One line of JSON after the line of its SHA-256."""
        content = {
            "key": asdict(self.key),
            "example_ids": self.example_ids,
            "subject_tags": self.subject_tags,
            "n_wanted": self.n_wanted,
            "begun_at": self.begun_at.isoformat(),
            "layout": self.layout.hex(),
            "learned": self.learned.to_dict(),
            "tested": self.tested.to_dict(),
        }
        text = canonical_json(content)
        return sha256(text).hexdigest().encode() + b"\n" + text

    @classmethod
    def decode(cls, data: bytes) -> Manifest | None:
        """None for anything but a whole manifest."""
        digest, _, text = data.partition(b"\n")
        if sha256(text).hexdigest().encode() != digest:
            return None
        try:
            content = json.loads(text)
            del data, text  # rosters are long
            return cls(
                BankKey(**content["key"]),
                tuple(content["example_ids"]),
                tuple(content["subject_tags"]),
                content["n_wanted"],
                datetime.fromisoformat(content["begun_at"]),
                bytes.fromhex(content["layout"]),
                Roster.from_dict(content.get("learned", {})),
                Roster.from_dict(content.get("tested", {})),
            )
        except (ValueError, KeyError, TypeError, AttributeError):  # whole, but written by another version of this code
            return None


def encode_row(row: ReferenceRow, digest: str, layout: bytes) -> bytes:
    """Bytes of a row file of the bank and layout."""
    figures = (row.retain_accuracy, row.test_accuracy, row.seconds)
    header = _HEADER.pack(_MAGIC, bytes.fromhex(digest), layout, row.seed, row.margins.shape[-1], *figures)
    body = header + np.ascontiguousarray(row.margins, dtype="<f4").tobytes()
    return body + sha256(body).digest()


def decode_row(data: bytes, manifest: Manifest) -> ReferenceRow | None:
    """None for anything but a whole row of this bank and layout."""
    n, n_views = len(manifest.example_ids), manifest.key.n_views
    if len(data) != _HEADER.size + 4 * n * n_views + 32 or sha256(data[:-32]).digest() != data[-32:]:
        return None
    magic, digest, layout, seed, n_examples, retain, test, seconds = _HEADER.unpack_from(data)
    if (magic, digest.hex(), layout, n_examples) != (_MAGIC, manifest.key.digest, manifest.layout, n):
        return None
    margins = np.frombuffer(data, dtype="<f4", count=n * n_views, offset=_HEADER.size).astype(np.float32)
    margins = margins.reshape(n_views, n)
    return ReferenceRow(seed, manifest.example_ids, margins, retain, test, seconds)
