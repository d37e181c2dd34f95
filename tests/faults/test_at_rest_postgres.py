"""The same in PostgreSQL; a module of its own, for a bench keeps temporary files where the server's user may not go."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from sqlalchemy import create_engine, text

from service.store.engine import session
from tests.faults.bench import Bench, memory_folder
from tests.faults.watch import Person, found_in
from tests.postgres import PostgresServer

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


def test_in_postgresql_an_erased_name_is_in_no_row_and_in_no_page_after_the_vacuum() -> None:
    with (
        PostgresServer.started() as server,
        TemporaryDirectory(prefix="faults-", dir=memory_folder(), ignore_cleanup_errors=True) as name,
    ):
        urls = {"database_url": server.create_database(), "workflow_database_url": server.create_database()}
        with Bench.running(Path(name), n_subjects=40, seed=8, api_workers=1, **urls) as bench:
            person = bench.next_person()
            (request_id,) = bench.file(person)
            bench.finish([request_id])
            with session(bench.context.engine) as s:
                s.execute(text("CHECKPOINT"))
                tables = [
                    row[0] for row in s.execute(text("SELECT tablename FROM pg_tables WHERE schemaname='public'"))
                ]
                for table in tables:
                    rows = s.execute(text(f'SELECT t::text FROM "{table}" t'))  # noqa: S608
                    assert not any(person.user_id in row[0] for row in rows), table
            workflows = create_engine(urls["workflow_database_url"].replace("postgresql://", "postgresql+psycopg://"))
            with workflows.connect() as connection:
                everything = connection.execute(
                    text("SELECT table_schema, table_name FROM information_schema.tables "
                         "WHERE table_schema NOT IN ('pg_catalog', 'information_schema')")
                ).all()  # fmt: skip
                for schema, table in everything:
                    rows = connection.execute(text(f'SELECT t::text FROM "{schema}"."{table}" t'))  # noqa: S608
                    assert not any(person.user_id in row[0] for row in rows), table
            workflows.dispose()
            canary = Person(person.user_id, (person.user_id.encode(),))
            held = [path for path in found_in([server._data], [canary]) if "pg_wal" not in path]
            assert held == []
            assert bench.tally.violations == []
