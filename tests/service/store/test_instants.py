"""Points in time come back from the database as they were given, or are refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from sqlalchemy.exc import StatementError

from service.context import Context
from service.store.engine import reading, session
from service.store.tables import Tombstone


def test_times_come_back_aware_and_in_utc(context: Context) -> None:
    there = datetime(2026, 1, 31, 12, tzinfo=timezone(timedelta(hours=5)))
    with session(context.engine) as s:
        s.add(Tombstone(subject_hash="a", created_at=there))
        s.commit()
    with reading(context.engine) as s:
        row = s.get(Tombstone, "a")
    assert row is not None
    assert row.created_at == there
    assert row.created_at.tzinfo == UTC


def test_naive_times_are_refused(context: Context) -> None:
    with session(context.engine) as s:
        s.add(Tombstone(subject_hash="a", created_at=datetime(2026, 1, 31)))  # noqa: DTZ001
        with pytest.raises(StatementError, match="aware datetime"):
            s.flush()
