from __future__ import annotations

from datetime import timedelta

from sqlmodel import select

from service.context import Context, new_id, utc_now
from service.store.engine import reading
from service.store.tables import ErasureRequest


def test_opening_makes_home_keys_and_database_once(settings):
    first = Context.open(settings)
    again = Context.open(settings)
    assert first.keyring.subject_hash("s31") == again.keyring.subject_hash("s31")
    assert first.keyring.public_key == again.keyring.public_key
    with reading(again.engine) as s:
        assert s.exec(select(ErasureRequest)).all() == []
    for context in (first, again):
        context.engine.dispose()


def test_the_clock_is_aware_and_ids_differ():
    assert utc_now().utcoffset() == timedelta(0)
    assert len({new_id() for _ in range(100)}) == 100


def test_printing_a_context_shows_no_key(context):
    shown = repr(context)
    assert context.keyring.block_key.hex() not in shown
    assert repr(context.keyring.block_key) not in shown
    assert "signing_key" not in shown
