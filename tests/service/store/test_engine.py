"""The database: exclusive transactions, and that deleted values are gone from its files."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from service.context import Context
from service.store.engine import reading, scrub_free_pages, session
from service.store.tables import Tombstone
from tests.waiting import at_once


@pytest.mark.both_databases
@pytest.mark.two_writers
def test_a_commit_waits_for_the_log_though_the_server_is_set_up_not_to(context: Context) -> None:
    """The tests' server is: after a crash it would not know of the last commits."""
    for _ in range(2):  # the second time on a connection that was given back
        with context.engine.connect() as connection:
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar_one() == "on"
            assert connection.exec_driver_sql("SELECT reset_val FROM pg_settings WHERE name = 'synchronous_commit'"
            ).scalar_one() == "off"  # fmt: skip


def test_a_deleted_value_is_in_no_file(context: Context) -> None:
    canary = "canary-5e1f0c"
    with session(context.engine) as s:
        s.add(Tombstone(subject_hash=canary, created_at=context.now()))
        s.commit()
    with session(context.engine) as s:
        s.delete(s.get(Tombstone, canary))
        s.commit()
    scrub_free_pages(context.engine)
    for path in context.settings.home.glob("expunge.db*"):
        assert canary.encode() not in path.read_bytes()


def test_read_then_write_is_never_interleaved(context: Context) -> None:
    def count_up() -> None:
        for _ in range(20):
            with session(context.engine) as s:
                n = s.execute(sa.select(sa.func.count()).select_from(Tombstone)).scalar_one()
                s.add(Tombstone(subject_hash=str(n), created_at=context.now()))
                s.commit()

    at_once(*[count_up] * 3)
    with reading(context.engine) as s:
        assert s.execute(sa.select(sa.func.count()).select_from(Tombstone)).scalar_one() == 60
