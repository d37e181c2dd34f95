from __future__ import annotations

from datetime import timedelta

from service.banks.overview import overview
from service.context import LINE
from service.store.engine import session
from service.store.tables import ReferenceBlock


def put(context, **values):
    row = {"line": LINE, "n_people": 2, "n_models": 64, "n_wanted": 64, "updated_at": context.now(), **values}
    with session(context.engine) as s:
        s.add(ReferenceBlock(**row))
        s.commit()


def test_nothing_was_looked_at_yet(context):
    seen = overview(context)
    assert seen.blocks == ()
    assert (seen.n_models, seen.n_wanted, seen.staleness, seen.size_bytes) == (0, 0, 0.0, 0)


def test_blocks_come_with_what_they_have(context):
    begun = context.now() - timedelta(hours=2)
    put(context, block="b", state="stale", bank="1" * 64, n_learned=38, n_gone=1, staleness=1 / 38, begun_at=begun)
    put(context, block="a", state="building", n_models=70, size_bytes=10, cost_seconds=3.0)
    put(context, block="c", state="outdated", staleness=0.5)
    put(context, block="x", state="fresh", line="another line")
    seen = overview(context)
    assert [block.block for block in seen.blocks] == ["a", "b", "c"]
    assert [seen.count(state) for state in ("fresh", "stale", "outdated", "building")] == [0, 1, 1, 1]
    assert seen.blocks[1].age_seconds == 7200
    assert seen.blocks[0].age_seconds is None
    assert (seen.n_models, seen.n_wanted) == (3 * 64, 3 * 64)
    assert seen.staleness == 1 / 38
    assert (seen.size_bytes, seen.cost_seconds) == (10, 3.0)
