"""Database engine and what differs between SQLite and PostgreSQL."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, create_engine

from service.errors import StartupError, TryLaterError
from service.settings import Settings
from service.store import migrations
from service.store.pooling import refuse_shared_sessions

_PATIENCE_SECONDS: Final = 30.0  # for SQLite's lock
_FIT_ID: Final = re.compile(r"[A-Za-z0-9-]{1,80}")


def connect(settings: Settings) -> sa.Engine:
    """Engine of the request database, its schema up to date.

    Raises:
        StartupError: the URL is none, the database does not answer, its connections are shared by a pool, or a newer
            Expunge has upgraded it.
    """
    engine = engine_of(settings)
    with starting(engine):
        refuse_shared_sessions(engine, "EXPUNGE_DATABASE_URL")
        migrations.upgrade(engine)
    return engine


@contextmanager
def starting(engine: sa.Engine) -> Iterator[None]:
    """Says in one sentence why a database cannot be used, and gives its connections back.

    Raises:
        StartupError: it does not answer, or refuses us.
    """
    try:
        yield
    except DBAPIError as error:
        engine.dispose()
        place, reason = engine.url.render_as_string(hide_password=True), str(error.orig).strip().partition("\n")[0]
        raise StartupError(f"Expected a database that can be used at {place}: {reason}.") from error
    except BaseException:
        engine.dispose()
        raise


def engine_of(settings: Settings) -> sa.Engine:
    """Engine of the request database, whatever its schema.

    Errors never quote a statement's values: they may name a person. What is committed survives a crash of the server,
    also where PostgreSQL is set up not to wait for its disk (`synchronous_commit = off`): a receipt is a promise, and
    what a purge is about to destroy must be known after it. SQLite runs in WAL mode with full durability;
    `secure_delete` overwrites what is deleted with zeros, so that an erased user id does not linger in free pages.

    Raises:
        StartupError: the URL is of no database that we know.
    """
    url = settings.effective_database_url
    if not url.startswith("sqlite"):
        if not url.startswith(("postgresql://", "postgresql+psycopg://")):
            raise StartupError(
                "Expected EXPUNGE_DATABASE_URL to be empty (SQLite in the home), or like "
                "postgresql://user:password@host:5432/name or sqlite:////path/of/file.db."
            )
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
        event.listen(engine, "connect", _durable)
        return engine
    settings.home.mkdir(parents=True, exist_ok=True)
    connect_args = {"timeout": _PATIENCE_SECONDS, "check_same_thread": False}
    engine = create_engine(url, connect_args=connect_args, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, below
        cursor = connection.cursor()
        _write_ahead(cursor)
        for pragma in ("synchronous=FULL", "secure_delete=ON", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: sa.Connection) -> None:
        # IMMEDIATE: a reader that turns writer would fail at once with SQLITE_BUSY instead of waiting.
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _durable(connection: Any, _record: Any) -> None:
    """Let each commit of a PostgreSQL connection wait for the write-ahead log; stricter settings stay."""
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        if cursor.fetchone()[0] == "off":
            cursor.execute("SET synchronous_commit TO on")
    connection.commit()  # else the setting would end with the transaction that is rolled back next


def make_fit(url: str, variable: str) -> None:
    """Make the database of a library that opens it by its URL fit for it.

    A file of SQLite is turned to WAL mode: in any other somebody who reads it, such as a backup, keeps everybody from
    writing.

    Raises:
        StartupError: the connections of a PostgreSQL are shared by a pool.
    """
    database = sa.make_url(url)
    if database.get_backend_name() == "postgresql":
        engine = create_engine(url, hide_parameters=True)
        try:
            refuse_shared_sessions(engine, variable)
        finally:
            engine.dispose()
    elif database.get_backend_name() == "sqlite" and database.database:
        with closing(sqlite3.connect(database.database)) as connection:
            _write_ahead(connection.cursor())


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Turn the file to WAL mode, which it then keeps.

    SQLite does not wait for the lock that this takes, whatever its timeout: of processes that open a database of
    another mode together, all but one would fail at once.

    Raises:
        sqlite3.OperationalError: somebody else held the lock all the time.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def fit_id(text: str) -> bool:
    """Whether a text from outside could be an id at all. Others are not looked for: PostgreSQL refuses NUL, and neither
    database takes halves of surrogate pairs.
    """
    return _FIT_ID.fullmatch(text) is not None


def session(engine: sa.Engine) -> Session:
    """Session for one transaction: `with session(engine) as s: …; s.commit()`."""
    return Session(engine, expire_on_commit=False)


def reading(engine: sa.Engine) -> Session:
    """Session that only reads, and so never waits for a writer in SQLite."""
    return Session(engine.execution_options(read_only=True), expire_on_commit=False)


def scrub_free_pages(engine: sa.Engine) -> None:
    """Leave deleted values in no free space of the request database's files.

    SQLite: the WAL is moved into the file, whose free pages are zeros (`secure_delete`), and truncated. PostgreSQL: the
    one table that held user ids is written anew and its old file given back; its write-ahead log keeps them until the
    server recycles its segments, and archives and replicas are the operator's.

    Raises:
        TryLaterError: another connection was reading all the time.
    """
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("SET lock_timeout = '10s'")
            connection.exec_driver_sql("VACUUM (FULL) erasure_requests")
            connection.exec_driver_sql("RESET lock_timeout")
        return
    raw = engine.raw_connection()  # no BEGIN of ours around it: a checkpoint cannot run in a transaction
    try:
        is_busy, *_ = raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        raw.close()
    if is_busy:
        raise TryLaterError("Expected to truncate the database's WAL; another connection was reading all the time.")
