"""What the parts of one process share, made once at its start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING
from uuid import uuid4

import sqlalchemy as sa

from service.keys import marks, storage_identity
from service.keys.keyring import Keyring
from service.settings import Settings
from service.store import fail_points
from service.store.engine import connect
from service.store.restoring import refuse_unfinished

if TYPE_CHECKING:
    from service.store.objects import Storage

LINE = "default"  # the model line; one service has one


def utc_now() -> datetime:
    """The wall clock, aware."""
    return datetime.now(UTC)


def new_id() -> str:
    """A random identifier that says nothing."""
    return str(uuid4())


@dataclass(frozen=True)
class Context:
    """Settings, database, secrets, clock and ids of a process."""

    settings: Settings = field(repr=False)  # a database URL may hold a password
    engine: sa.Engine = field(repr=False)
    keyring: Keyring
    now: Callable[[], datetime] = utc_now
    new_id: Callable[[], str] = new_id

    @classmethod
    def open(cls, settings: Settings) -> Context:
        """Database and keys of the home, made on first use."""
        settings.home.mkdir(parents=True, exist_ok=True)
        refuse_unfinished(settings.home)
        context = cls(settings, connect(settings), Keyring.open(settings.keys_folder))
        marks.compare(context.engine, context.keyring)
        _ = context.storage  # what is wrong with its URL is said now
        return context

    @cached_property
    def storage(self) -> Storage | None:
        """The store that machines share, or none: then they share the home."""
        if not self.settings.storage_url:
            return None
        from service.store.objects import Storage

        return Storage(self.settings.storage_url)

    def known_storage(self) -> Storage | None:
        """The shared storage, once it was seen to be the one that this service has used before; none if it has none.

        Raises:
            StorageError: it could not be reached, or it is another one.
        """
        return storage_identity.identified(self.engine, self.keyring, self.storage)

    def reached(self, point: str) -> None:
        """A fail point is passed, see `fail_points`; nothing happens outside of tests."""
        fail_points.reached(self.settings, point)
