"""The schema's steps: from nothing, from the first release with data in it, by several processes at once, on both."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlmodel import SQLModel, select

from service.errors import StartupError
from service.requests.states import ENDS
from service.settings import Settings
from service.store import migrations
from service.store.engine import connect, engine_of, reading
from service.store.tables import CertificateRecord, ErasureRequest, IdempotencyRecord, LogLeaf, RequestEvent, Run
from tests.postgres import PostgresServer
from tests.waiting import PATIENCE_SECONDS

pytestmark = pytest.mark.both_databases

DUMPS = Path(__file__).parent / "first_schema"  # of a database as the first release left it


@pytest.fixture
def empty(dialect: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Settings whose database has no tables."""
    if dialect == "sqlite":
        (tmp_path / "home").mkdir()
        yield Settings(home=tmp_path / "home", database_url="")
        return
    server: PostgresServer = request.getfixturevalue("postgres")
    url = server.create_database()
    yield Settings(home=tmp_path / "home", database_url=url)
    server.drop_database(url)


@pytest.fixture
def first_release(empty: Settings, dialect: str) -> Settings:
    """Settings whose database the first release made and used."""
    dump = (DUMPS / f"{dialect}.sql").read_text()
    if dialect == "sqlite":
        connection = sqlite3.connect(empty.home / "expunge.db")
        connection.executescript(dump)
        connection.close()
    else:
        with psycopg.connect(empty.database_url) as connection:
            connection.execute(dump.encode())
    return empty


def differences(engine: sa.Engine) -> list[object]:
    """What the models have that the database has not, and the other way round."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, SQLModel.metadata))


def test_steps_are_numbered_without_a_gap() -> None:
    assert [int(step) for step in migrations.STEPS] == list(range(1, len(migrations.STEPS) + 1))


def test_an_empty_database_gets_the_schema_of_the_models(empty: Settings) -> None:
    engine = connect(empty)
    assert differences(engine) == []
    assert migrations.upgrade(engine) == migrations.HEAD
    engine.dispose()


def test_the_first_release_s_database_keeps_its_data(first_release: Settings) -> None:
    engine = connect(first_release)
    assert differences(engine) == []
    with reading(engine) as s:
        states = sorted(request.state for request in s.exec(select(ErasureRequest)))
        assert [run.stage for run in s.exec(select(Run))] == ["completed"]
        assert sorted(row.verdict for row in s.exec(select(CertificateRecord))) == ["FAILED", "PASSED"]
        leaves = s.exec(select(LogLeaf).order_by(LogLeaf.index)).all()
        events = s.exec(select(RequestEvent)).all()
    assert states == ["cancelled", "completed", "completed", "needs_attention", "queued", "queued"]
    assert [leaf.index for leaf in leaves] == list(range(len(leaves)))
    assert len(events) > 10
    engine.dispose()


def test_salts_of_ended_requests_are_gone_from_a_first_release_s_database(first_release: Settings) -> None:
    engine = connect(first_release)
    with reading(engine) as s:
        requests = list(s.exec(select(ErasureRequest)))
        records = list(s.exec(select(IdempotencyRecord)))
    for request in requests:
        assert (request.commitment_salt is None) == (request.state in ENDS)
        assert request.commitment
    assert len(records) == 2
    assert all(receipt["commitment_salt"] is None for record in records for receipt in record.response["requests"])
    engine.dispose()


def test_a_later_row_gets_a_number_of_its_own(first_release: Settings) -> None:
    engine = connect(first_release)
    with engine.begin() as connection:
        before = connection.execute(sa.text("SELECT max(id) FROM request_events")).scalar_one()
        connection.execute(
            sa.text("INSERT INTO request_events (request_id, at, to_state, note) VALUES ('x', :at, 'queued', '')"),
            {"at": "2026-01-31 12:00:00+00:00"},
        )
        assert connection.execute(sa.text("SELECT max(id) FROM request_events")).scalar_one() == before + 1
    engine.dispose()


def test_a_newer_database_is_refused(empty: Settings) -> None:
    engine = connect(empty)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StartupError, match=f"schema {migrations.HEAD} or earlier, found 9999: a newer Expunge"):
        connect(empty)
    engine.dispose()


def test_a_step_that_breaks_off_leaves_nothing(first_release: Settings) -> None:
    """As a kill would: what a step did is undone, and the next start does it again."""
    engine = engine_of(first_release)
    before = _schema(engine)

    @sa.event.listens_for(engine, "commit")
    def _die(_connection: sa.Connection) -> None:
        raise RuntimeError("The machine stopped.")

    with pytest.raises(RuntimeError, match="stopped"):
        migrations.upgrade(engine)
    sa.event.remove(engine, "commit", _die)
    engine.dispose()
    assert _schema(engine) == before
    migrations.upgrade(engine)
    assert differences(engine) == []
    engine.dispose()


def test_processes_that_start_together_do_not_collide(first_release: Settings) -> None:
    program = (
        "import sys\nfrom service.store.engine import connect\nfrom service.settings import Settings\n"
        "sys.stdin.read()\nconnect(Settings())\n"
    )
    environment = {
        **os.environ,
        "EXPUNGE_HOME": str(first_release.home),
        "EXPUNGE_DATABASE_URL": first_release.database_url,
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None  # `communicate` would flush it
    said = [process.communicate(timeout=PATIENCE_SECONDS)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0] * len(started), "\n".join(said)
    engine = connect(first_release)
    assert differences(engine) == []
    engine.dispose()


def _schema(engine: sa.Engine) -> dict[str, list[str]]:
    inspector = sa.inspect(engine)
    return {name: [column["name"] for column in inspector.get_columns(name)] for name in inspector.get_table_names()}
