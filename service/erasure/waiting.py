"""What the worker does when something outside of the program fails: it waits, tries again and tells the operators.

Such errors (`OUTSIDE`) are those of the database, the shared storage, files and serving processes, and a change that
somebody else made to the same request. The worker keeps its lease and tries again. Any other error is a mistake in the
program and ends the worker, because nobody knows what it would do next.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Final

import sqlalchemy as sa
import structlog
from dbos import error as dbos_error
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from sqlmodel import col

from service.context import LINE, Context
from service.errors import ExpungeError
from service.store.engine import session
from service.store.tables import WorkerLease
from service.telemetry.redact import describe
from unlearning.errors import UnlearningError

log = structlog.get_logger()

_DATABASE: Final = (DBAPIError, NoConnectionError, sqlite3.Error)
OUTSIDE: Final = (ExpungeError, UnlearningError, *_DATABASE, dbos_error.DBOSException, OSError)

FIRST_REST_SECONDS: Final = 1.0
LONGEST_REST_SECONDS: Final = 30.0
JITTER: Final = 0.25  # of the rest, at most, on top of it


def rest_after(n_failures: int) -> float:
    """Seconds between the n-th failure in a row and the next try, without jitter: 1, 2, 4, … at most 30."""
    return min(FIRST_REST_SECONDS * 2 ** min(n_failures - 1, 10), LONGEST_REST_SECONDS)


def kind_of(error: Exception) -> str:
    """What the worker waits for, in a few fixed words: they are the label of a metric."""
    if isinstance(error, ExpungeError):
        return error.title
    if isinstance(error, _DATABASE):
        return "Database"
    if isinstance(error, dbos_error.DBOSException):
        return "Workflow store"
    return "Data folder" if isinstance(error, UnlearningError) else "Files"


class Waiting:
    """Counts failures in a row and shows them in the log and in the lease's row."""

    def __init__(self, context: Context, rng: random.Random) -> None:
        self._context = context
        self._rng = rng
        self._n_failures = 0
        self._since: datetime | None = None

    def attempt(self, do: Callable[[], None]) -> float:
        """Call `do`; gives 0, or the seconds to rest before the next try if something outside failed."""
        try:
            do()
            if self._n_failures:
                self._write(None, None)
        except OUTSIDE as error:
            return self._after(error)
        if self._n_failures:
            log.info("worker.goes_on", n_failures=self._n_failures)
        self._n_failures, self._since = 0, None
        return 0.0

    def _after(self, error: Exception) -> float:
        self._n_failures += 1
        self._since = self._since or self._context.now()
        rest = rest_after(self._n_failures) * (1 + JITTER * self._rng.random())
        kind = kind_of(error)
        log.error(
            "worker.waits",
            waits_for=kind,
            error=describe(error),
            n_failures=self._n_failures,
            rest_seconds=round(rest, 1),
        )
        with suppress(SQLAlchemyError):  # the database is away: then nobody can read the row either
            self._write(kind, self._since)
        return rest

    def _write(self, kind: str | None, since: datetime | None) -> None:
        row = sa.update(WorkerLease).where(col(WorkerLease.line) == LINE)
        with session(self._context.engine) as s:
            s.execute(row.values(waits_for=kind, waits_since=since))
            s.commit()
