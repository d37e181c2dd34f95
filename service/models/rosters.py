"""Whom each model version learned from, as keyed hashes: what the data folder must still hold of them.

A roster is written with the version's row, by production training from the rows it trained on and by an erasure from
the version it began with, less the people erased. It is deleted with the weights. It does not name anybody, but tells
whether the data folder is the one the model came from, and whether a user id is of somebody a model remembers.

Tested in `tests/service/erasure/test_candidates.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlmodel import Session, col, select

from service.keys.keyring import Keyring
from service.store.tables import LearnedSubject
from unlearning.faces import Faces

_AT_A_TIME = 1000  # hashes in one statement


def of_rows(keyring: Keyring, faces: Faces, rows: NDArray[np.int64]) -> dict[str, int]:
    """The roster of a model that learns from some rows: images by subject hash."""
    counts = np.bincount(faces.subject_of[rows], minlength=len(faces.people))
    return {keyring.subject_hash(faces.people[person]): int(counts[person]) for person in np.flatnonzero(counts)}


def write(s: Session, digest: str, learned_from: Mapping[str, int]) -> None:
    """Write a version's roster in the caller's transaction."""
    rows = [
        {"digest": digest, "subject_hash": subject_hash, "n_images": n_images}
        for subject_hash, n_images in learned_from.items()
    ]
    if rows:
        s.execute(sa.insert(LearnedSubject), rows)


def read(s: Session, digest: str) -> dict[str, int]:
    """A version's roster, images by subject hash; empty if it is not known, for every model learned from somebody."""
    query = select(LearnedSubject.subject_hash, LearnedSubject.n_images).where(LearnedSubject.digest == digest)
    return dict(s.exec(query).all())


def naming(s: Session, subject_hashes: Iterable[str]) -> dict[str, set[str]]:
    """By subject hash, the versions whose rosters have it; only those of whom there is one."""
    found: dict[str, set[str]] = {}
    wanted = sorted(set(subject_hashes))
    for start in range(0, len(wanted), _AT_A_TIME):
        named = col(LearnedSubject.subject_hash).in_(wanted[start : start + _AT_A_TIME])
        for subject_hash, digest in s.exec(select(LearnedSubject.subject_hash, LearnedSubject.digest).where(named)):
            found.setdefault(subject_hash, set()).add(digest)
    return found


def forget(s: Session, digests: Iterable[str]) -> None:
    """Delete the rosters of some versions in the caller's transaction."""
    s.execute(sa.delete(LearnedSubject).where(col(LearnedSubject.digest).in_(list(digests))))
