"""Whether the keys of this home are those of the database: machines with homes of their own must have the same ones.

A process with other keys would write tombstones that nobody recognises: the person would be trained on again. So the
first process that opens a database leaves a mark of each secret in it, and whoever comes with another secret does not
start. A mark is a hash of 32 random bytes, from which nothing can be learned. The signing key has none: it is rotated,
and what it signed is checked against every key published.

Tested in `tests/service/banks/test_replica.py`.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlmodel import select

from service.errors import StartupError
from service.keys.keyring import Keyring
from service.store.engine import reading, session
from service.store.tables import KeyMark


def compare(engine: sa.Engine, keyring: Keyring) -> None:
    """Leave the keys' marks in the database, or compare them with those that are there.

    Raises:
        StartupError: the database belongs to other keys.
    """
    mine = {name: _mark(name, key) for name, key in keyring.secrets().items()}
    if (found := _read(engine)).keys() < mine.keys():
        with session(engine) as s:
            s.add_all(KeyMark(name=name, mark=mark) for name, mark in mine.items() if name not in found)
            try:
                s.commit()
            except IntegrityError:  # another process was first
                s.rollback()
        found = _read(engine)
    if others := sorted(name for name in mine if found[name] != mine[name]):
        raise StartupError(
            f"Expected the keys this database was made with, got another {', '.join(others)}: bring the folder `keys` "
            "of the service's first home (or its backup) into this one before starting."
        )


def _read(engine: sa.Engine) -> dict[str, str]:
    with reading(engine) as s:
        return {row.name: row.mark for row in s.exec(select(KeyMark))}


def _mark(name: str, key: bytes) -> str:
    return hashlib.sha256(f"expunge key mark {name}\n".encode() + key).hexdigest()
