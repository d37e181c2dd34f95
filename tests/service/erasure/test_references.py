"""What a run says while its references are trained."""

from __future__ import annotations

from datetime import timedelta

from service.erasure.references import noting
from tests.service import tiny


def test_a_run_says_by_when_its_trainings_will_have_ended_at_the_pace_so_far(tiny_context, clock, monkeypatch):
    work = tiny.workspace(tiny_context, tiny.claim_run(tiny_context, tiny.people(tiny_context)[0]))
    told, began = tiny.listen(monkeypatch), work.context.now()
    tell = noting(work, "reference models")
    tell(10, 64)  # there already
    clock.advance(minutes=3)
    tell(12, 64)
    clock.advance(minutes=1)
    tell(64, 64)
    all_by = began + timedelta(minutes=3 + 78)  # two in three minutes: 52 more in 78
    assert told == [
        "reference models 10/64",
        f"reference models 12/64, all by {all_by:%d %b %Y, %H:%M} UTC",
        "reference models 64/64",
    ]
