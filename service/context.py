"""What the parts of one process share, made once at its start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import uuid4

import sqlalchemy as sa

from service import fail_points
from service.db import connect
from service.keyring import Keyring
from service.settings import Settings

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
        return cls(settings, connect(settings), Keyring.open(settings.keys_folder))

    def reached(self, point: str) -> None:
        """A fail point is passed, see `fail_points`; nothing happens outside of tests."""
        fail_points.reached(self.settings, point)
