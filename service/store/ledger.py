"""The append-only log in the database: what was bound before a run, and every audit and certificate after it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlmodel import Session, col, select

from audit.proof import log
from service.store.tables import LogLeaf

ORIGIN = "expunge-log"


def append(session: Session, entry: bytes, *, kind: str, now: datetime) -> int:
    """Add an entry (from `audit.proof.log.entry`) in the caller's transaction; gives its index.

    Two writers at once: in SQLite the transaction is exclusive, in PostgreSQL the primary key refuses the second.
    """
    (index,) = append_all(session, [entry], kind=kind, now=now)
    return index


def append_all(session: Session, entries: Sequence[bytes], *, kind: str, now: datetime) -> range:
    """Add entries in their order; gives their indices."""
    first = int(session.exec(select(sa.func.count()).select_from(LogLeaf)).one())
    session.add_all(
        LogLeaf(index=index, kind=kind, entry=entry.decode(), leaf_hash=log.leaf_hash(entry).hex(), created_at=now)
        for index, entry in enumerate(entries, first)
    )
    session.flush()
    return range(first, first + len(entries))


def record(session: Session, kind: str, *, now: datetime, **fields: Any) -> int:
    """Add an entry made of these fields; gives its index."""
    return append(session, log.entry(kind, at=now.isoformat(), **fields), kind=kind, now=now)


def leaf_hashes(session: Session, size: int | None = None) -> list[bytes]:
    """Leaf hashes in order, all or the first `size`."""
    query = select(LogLeaf.leaf_hash).order_by(col(LogLeaf.index))
    if size is not None:
        query = query.where(LogLeaf.index < size)
    return [bytes.fromhex(text) for text in session.exec(query)]


def checkpoint(hashes: Sequence[bytes], key: Ed25519PrivateKey) -> str:
    """Head of the log with these leaves, signed."""
    head = log.Checkpoint(ORIGIN, len(hashes), log.root(hashes))
    return log.sign_checkpoint(head, sign=key.sign, public_key=key.public_key())
