"""The worker's lease on a model line: two workers never write one run, on any machines and with any homes.

The lease is a row of the database, renewed 24 times in its length. Three rules make it exclusive:

1. A holder that has not renewed the row for one length ends its own process, in a thread that does nothing else.
2. A new worker takes the row only if the holder released it, is known to have ended, or has not renewed it for one and
   a half lengths while the new worker watched.
3. Taking and renewing are conditional writes on one row. If a new worker and a holder that wakes up write at the same
   time, one of them sees that the other was first.

Both lengths are measured on the monotonic clock of the machine that measures. The times in the row are for people and
are compared with nothing, so a wall clock that is set back or forward neither lets two workers work nor stops one.

One case is not covered. A machine that is suspended as a whole (a virtual machine, a laptop that sleeps) may not see
the time pass. When it resumes, its worker goes on until the next renewal, at most 2.5 seconds later.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlmodel import col

from service.context import LINE, Context
from service.errors import StartupError
from service.store.engine import reading, session
from service.store.process_marks import has_ended, mark_of, this_host
from service.store.tables import OpenLine, WorkerLease
from service.telemetry.redact import describe

log = structlog.get_logger()

LEASE_SECONDS = 60.0  # on a busy machine the worker has a low priority and may get no CPU for seconds
_BEATS = 24  # renewals in one length
_WATCHED = 1.5  # lengths without renewal after which the row is free; the half is for the holder to end itself
_LOOKS = 24  # how often a watching worker reads the row in one length


class LineLease:
    """`with LineLease(context): …` holds the line for the block.

    A file lock in the home also keeps a second worker out of the *home*, whatever database it uses.

    Raises:
        StartupError: on entry, if another worker has the home or the line.
    """

    def __init__(
        self,
        context: Context,
        seconds: float = LEASE_SECONDS,
        *,
        steady: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._context = context
        self._seconds = seconds
        self._steady = steady
        self._sleep = sleep
        self._holder = secrets.token_hex(8)
        self._token = 0
        self._renewed_at = 0.0  # monotonic, when the last successful renewal began
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, name="worker-lease", daemon=True),
            threading.Thread(target=self._guard, name="worker-lease-guard", daemon=True),
        ]

    def __enter__(self) -> LineLease:
        self._file = (self._context.settings.home / "worker.lock").open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise _refusal(self._row()) from None
        try:
            self._take()
        except BaseException:
            self._file.close()
            raise
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        try:
            self._let_go()
        except SQLAlchemyError as error:  # the next worker sees that this one has ended, or watches
            log.error("worker.lease_kept", error=describe(error))
        self._file.close()

    def _let_go(self) -> None:
        """Release the row, unless a run is open: a thread may be in one of its steps until the process ends."""
        is_idle = ~sa.exists().where(col(OpenLine.line) == LINE)
        self._write(is_idle, lease_until=WorkerLease.heartbeat_at)

    def _row(self) -> WorkerLease | None:
        with reading(self._context.engine) as s:
            return s.get(WorkerLease, LINE)

    def _take(self) -> None:
        before = self._row()
        if not _is_free(before):
            before = self._watch(before)
        self._renewed_at = self._steady()
        now = self._context.now()
        with session(self._context.engine) as s:
            row = s.get(WorkerLease, LINE, with_for_update=True)
            if _beat(row) != _beat(before):
                raise _refusal(row)
            self._token = (row.fencing_token if row else 0) + 1
            fresh = WorkerLease(
                line=LINE, holder=self._holder, host=this_host(), pid=os.getpid(), process=mark_of(os.getpid()),
                fencing_token=self._token, n_subjects=row.n_subjects if row else None, heartbeat_at=now,
                lease_until=now + timedelta(seconds=self._seconds),
            )  # fmt: skip
            s.merge(fresh)
            try:
                s.commit()
            except IntegrityError:  # PostgreSQL: two first workers at once, and no row that one could lock
                raise _refusal(None) from None

    def _watch(self, before: WorkerLease | None) -> WorkerLease | None:
        """Wait until the row is free; gives the row.

        Raises:
            StartupError: its holder renewed it.
        """
        until = self._steady() + _WATCHED * self._seconds
        while self._steady() < until:
            self._sleep(self._seconds / _LOOKS)
            row = self._row()
            if _is_free(row):
                return row
            if _beat(row) != _beat(before):
                raise _refusal(row)
        return before

    def renew(self) -> bool:
        """Renew the lease; gives whether the line is still ours."""
        now = self._context.now()
        return self._write(heartbeat_at=now, lease_until=now + timedelta(seconds=self._seconds))

    def _keep(self) -> None:
        while not self._stop.wait(self._seconds / _BEATS):
            began = self._steady()
            try:
                is_ours = self.renew()
            except Exception as error:  # say, the database restarts; the guard bounds how long that may last
                log.error("worker.lease_not_renewed", error=describe(error))
                continue
            if not is_ours:
                _end("worker.lease_lost")
            self._renewed_at = began

    def _guard(self) -> None:
        """End the process when the lease runs out, also while a renewal waits for the database."""
        while (left := self._renewed_at + self._seconds - self._steady()) > 0:
            if self._stop.wait(left):
                return
        _end("worker.lease_ran_out")

    def _write(self, *conditions: sa.ColumnElement[bool], **values: object) -> bool:
        """Change the row if it is still ours and the conditions hold; gives whether it was changed."""
        ours = sa.update(WorkerLease).where(
            col(WorkerLease.line) == LINE,
            col(WorkerLease.holder) == self._holder,
            col(WorkerLease.fencing_token) == self._token,
            *conditions,
        )
        with session(self._context.engine) as s:
            is_ours = bool(s.execute(ours.values(**values)).rowcount)  # type: ignore[attr-defined]
            s.commit()
        return is_ours


def _end(event: str) -> None:
    """Kill this process at once: what a destructor or a handler would still write belongs to another worker by now."""
    log.error(event)
    os.kill(os.getpid(), signal.SIGKILL)


def _refusal(row: WorkerLease | None) -> StartupError:
    who = f"process {row.pid} on {row.host}, last heard of at {row.heartbeat_at:%H:%M:%S} UTC" if row else "one"
    return StartupError(f"Expected no other worker on model line {LINE!r}, found {who}; stop it first.")


def _beat(row: WorkerLease | None) -> object:
    """A value that changes whenever the row is renewed or taken."""
    return row and (row.fencing_token, row.holder, row.heartbeat_at)


def _is_free(row: WorkerLease | None) -> bool:
    """Whether no worker holds the line: there is no row, its holder released it, or is known to have ended."""
    return row is None or row.lease_until <= row.heartbeat_at or has_ended(row.pid, row.process)
