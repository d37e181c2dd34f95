"""Whether what is between us and PostgreSQL gives each of our connections one of its own.

PgBouncer in transaction mode does not: a setting of the session, a prepared statement, an advisory lock or a LISTEN
would be somebody else's in the next transaction. Commits would not wait for the disk if that is the server's
default, and durable execution would not hear that its work is done.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from service.errors import StartupError

_PROCESS: Final = sa.text("SELECT pg_backend_pid()")


def refuse_shared_sessions(engine: sa.Engine, variable: str) -> None:
    """See that a session of ours stays ours; asks one question where nothing is in between.

    Args:
        engine: of PostgreSQL; any other is left alone.
        variable: setting that the URL came from, for the message.

    Raises:
        StartupError: a pool changes server processes between two transactions.
    """
    if engine.dialect.name != "postgresql":
        return
    with engine.connect() as first:
        told = first.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
        if first.execute(_PROCESS).scalar_one() == told:
            return  # the process that greeted us; a pool greets in its own name
        first.rollback()
        with engine.connect() as second:
            if _changes(first, second):
                raise StartupError(
                    f"Expected {variable} to lead to PostgreSQL or to a pool of sessions, got a pool that changes "
                    "server connections between transactions, such as PgBouncer in transaction mode: give this "
                    "database pool_mode = session, or name PostgreSQL's own port."
                )


def _changes(first: sa.Connection, second: sa.Connection) -> bool:
    """Whether one of two connections meets another server process in a later transaction.

    Both are open at once each time. A pool that gives out the server process freed last swaps the two in the second
    round, one that takes turns in the third.
    """
    seen: dict[sa.Connection, int] = {}
    for order in ((first, second), (first, second), (second, first)):
        for each in order:
            process = each.execute(_PROCESS).scalar_one()
            if seen.setdefault(each, process) != process:
                return True
        first.rollback()
        second.rollback()
    return False
