"""What the parts of one process share, made once at its start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING
from uuid import uuid4

import sqlalchemy as sa

from service import fail_points, key_marks
from service.db import connect
from service.keyring import Keyring
from service.settings import Settings

if TYPE_CHECKING:
    from service.storage import Storage

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
        context = cls(settings, connect(settings), Keyring.open(settings.keys_folder))
        key_marks.compare(context.engine, context.keyring)
        _ = context.storage  # what is wrong with its URL is said now
        return context

    @cached_property
    def storage(self) -> Storage | None:
        """The store that machines share, or none: then they share the home."""
        if not self.settings.storage_url:
            return None
        from service.storage import Storage

        return Storage(self.settings.storage_url)

    def reached(self, point: str) -> None:
        """A fail point is passed, see `fail_points`; nothing happens outside of tests."""
        fail_points.reached(self.settings, point)
