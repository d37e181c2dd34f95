"""Fixtures of a service in a temporary folder: database, keys, clock, API clients."""

from __future__ import annotations

import io
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
import structlog
from fastapi import FastAPI
from sqlmodel import SQLModel

from service.api.routes import create_api
from service.context import Context
from service.keys import api_keys
from service.keys.api_keys import Client
from service.keys.keyring import Keyring
from service.settings import Settings
from service.store.engine import connect, session
from service.telemetry import logs
from tests.postgres import PostgresServer

with warnings.catch_warnings():
    # Starlette's test client wants another HTTP library than the one we use; the client itself works with ours.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

N_SUBJECTS = 40
START = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


class Clock:
    """A clock that stands still until told otherwise."""

    def __init__(self, now: datetime = START) -> None:
        self.at = now

    def __call__(self) -> datetime:
        return self.at

    def advance(self, **span: float) -> datetime:
        """Move on by a `timedelta`'s arguments."""
        self.at += timedelta(**span)
        return self.at


@pytest.fixture
def clock() -> Clock:
    return Clock()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests of a module marked `both_databases` run on SQLite and on PostgreSQL, of it those that need two writers at
    once on the latter only.
    """
    if "dialect" in metafunc.fixturenames and metafunc.definition.get_closest_marker("both_databases"):
        has_two_writers = metafunc.definition.get_closest_marker("two_writers")
        metafunc.parametrize("dialect", ["postgresql"] if has_two_writers else ["sqlite", "postgresql"])


@pytest.fixture
def dialect() -> str:
    """The database that `settings` lead to."""
    return "sqlite"


@pytest.fixture(scope="session")
def postgres_url(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A PostgreSQL database with the schema, which one test after the other uses."""
    url = postgres.create_database()
    connect(Settings(home=tmp_path_factory.mktemp("schema"), database_url=url)).dispose()
    return url


@pytest.fixture
def clean_database(dialect: str, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Empties the tables of PostgreSQL; of SQLite every test has its own file."""
    if dialect == "sqlite":
        return lambda: None
    url = request.getfixturevalue("postgres_url")

    def clean() -> None:
        tables = SQLModel.metadata.tables
        which = " UNION ALL ".join(f"SELECT '{name}' WHERE EXISTS (SELECT FROM \"{name}\")" for name in tables)  # noqa: S608
        with psycopg.connect(url) as connection:
            connection.execute(  # what a failed test left open would lock the tables for ever
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            filled = {name for (name,) in connection.execute(which)}  # most are empty, and each takes a while
            numbered = {name for name, table in tables.items() if table.autoincrement_column is not None}
            names = ", ".join(f'"{name}"' for name in sorted(filled | numbered))
            connection.execute(f"TRUNCATE {names} RESTART IDENTITY")  # type: ignore[arg-type]

    return clean


@pytest.fixture
def settings(tmp_path: Path, dialect: str, request: pytest.FixtureRequest) -> Settings:
    values: dict[str, Any] = {
        "home": tmp_path / "home", "hold_seconds": 3600, "lease_seconds": 3, "most_open_requests": 2000,
    }  # fmt: skip
    if dialect == "sqlite":
        return Settings(**values)
    request.getfixturevalue("clean_database")()
    return Settings(**values, database_url=request.getfixturevalue("postgres_url"))


@cache
def _empty_database() -> bytes:
    """A SQLite database with the schema, which takes longer to make than most tests take."""
    with TemporaryDirectory() as folder:
        settings = Settings(home=Path(folder), database_url="")
        connect(settings).dispose()
        return Path(folder, "expunge.db").read_bytes()


@contextmanager
def open_context(settings: Settings, now: Callable[[], datetime]) -> Iterator[Context]:
    """Context on the settings' database."""
    url = sa.make_url(settings.effective_database_url)
    if url.get_backend_name() == "sqlite" and not (file := Path(str(url.database))).exists():
        settings.home.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_empty_database())
    engine = connect(settings)
    engine.dispose()

    @sa.event.listens_for(engine, "connect")
    def _hurry(connection: Any, _record: Any) -> None:
        if engine.dialect.name == "sqlite":  # no test here cuts the power
            connection.execute("PRAGMA synchronous=OFF")

    try:
        yield Context(settings, engine, Keyring.open(settings.keys_folder), now=now)
    finally:
        engine.dispose()


@pytest.fixture
def context(settings: Settings, clock: Clock) -> Iterator[Context]:
    with open_context(settings, clock) as context:
        yield context


@pytest.fixture(scope="session")
def contexts() -> Callable[..., AbstractContextManager[Context]]:
    """`with contexts(settings, now) as context`, for tests that need several in one go."""
    return open_context


@pytest.fixture(scope="session")
def tiny_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny home with a trained model; tests work on copies."""
    from tests.service import tiny

    home = tmp_path_factory.mktemp("template") / "home"
    tiny.write_home(home, Clock())
    return home


@pytest.fixture(scope="session")
def only_pipeline() -> Any:
    """A pipeline for steps without DBOS, which registers one instance of a name in a process; give it a context."""
    from service.erasure.pipeline import Pipeline
    from tests.service import tiny

    return Pipeline(None, tiny.POLICY)  # type: ignore[arg-type]


@pytest.fixture
def tiny_context(tiny_template: Path, tmp_path: Path, clock: Clock) -> Iterator[Context]:
    """Context of a fresh copy of the tiny home."""
    from tests.service import tiny

    shutil.copytree(tiny_template, tmp_path / "tiny")
    with open_context(tiny.settings_of(tmp_path / "tiny"), clock) as context:
        yield context


@pytest.fixture
def new_key(context: Context) -> Callable[..., str]:
    """Make an API key: `new_key("erasure:write", key_id="a")` gives the key itself."""

    def make(*scopes: str, key_id: str = "client", expires_at: datetime | None = None) -> str:
        with session(context.engine) as s:
            _, token = api_keys.create_key(
                s, name=key_id, scopes=scopes, now=context.now(), key_id=key_id, expires_at=expires_at
            )
            s.commit()
        return token

    return make


@pytest.fixture
def person() -> Callable[..., Client]:
    """A client as a route hands it on."""

    def make(key_id: str = "client", *scopes: str) -> Client:
        return Client(key_id, key_id, frozenset(scopes or {api_keys.WRITE, api_keys.READ}))

    return make


@pytest.fixture
def app(context: Context) -> FastAPI:
    return create_api(context, n_subjects=lambda: N_SUBJECTS)


@pytest.fixture
def client(app: FastAPI, new_key: Callable[..., str]) -> Iterator[TestClient]:
    """HTTP client of the unmounted API whose key holds every scope."""
    with TestClient(app) as client:
        client.headers["Authorization"] = f"Bearer {new_key(*api_keys.SCOPES)}"
        yield client


@pytest.fixture
def log_stream() -> Iterator[io.StringIO]:
    """What the process logs as JSON, from here on."""
    stream, root = io.StringIO(), logging.getLogger()
    before, level = list(root.handlers), root.level
    logs.set_up_logs("json", stream)
    yield stream
    root.handlers, root.level = before, level
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def assert_problem() -> Callable[..., dict[str, Any]]:
    """`assert_problem(response, status)`: the response is an error in the one shape; gives its body."""

    def check(response: Any, status: int) -> dict[str, Any]:
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/problem+json"
        body: dict[str, Any] = response.json()
        assert {"type", "title", "status", "detail", "request_id", "errors"} <= body.keys()
        assert body["status"] == status
        assert body["type"] == "urn:expunge:problem:" + body["title"].lower().replace(" ", "-")
        assert body["request_id"] == response.headers["x-request-id"]
        assert body["detail"].endswith((".", "<API key>'."))
        for place in body["errors"]:
            assert place.keys() == {"pointer", "detail"}
        assert ("www-authenticate" in response.headers) == (status in (401, 403))
        assert ("retry-after" in response.headers) == (status in (429, 503))
        return body

    return check
