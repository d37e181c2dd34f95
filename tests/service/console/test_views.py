"""Words for moments and spans, progress, timelines and ladders."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.console import views
from service.console.views import Progress
from service.store.tables import Attempt, RequestEvent, Run

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("note", "progress"),
    [
        ("reference models 3/64", Progress("reference models", 3, 64)),
        (
            "reference models 3/64, all by 30 Nov 2026, 14:05 UTC",
            Progress("reference models", 3, 64, "all by 30 Nov 2026, 14:05 UTC"),
        ),
        ("dilute: unlearned models 64/64", Progress("dilute: unlearned models", 64, 64)),
        ("dilute: making the candidate", Progress("dilute: making the candidate")),
        ("", None),
    ],
)
def test_a_note_with_counts_is_a_bar(note: str, progress: Progress | None) -> None:
    assert views.progress_of(note) == progress


@given(st.integers(0, 500), st.integers(1, 500))
def test_a_bar_speaks_five_times_at_most(done: int, wanted: int) -> None:
    progress = Progress("models", min(done, wanted), wanted)
    assert progress.spoken.startswith("models: ")
    assert (progress.spoken == "models: all") == (done >= wanted)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (60, "1 min"), (200, "3 min 20 s"), (7500, "2 h 5 min"),
     (86400 * 4, "4 d"), (-5, "0.0 s")],
)  # fmt: skip
def test_spans(seconds: float, text: str) -> None:
    assert views.span(seconds) == text


@pytest.mark.parametrize(
    ("hours", "text"),
    [(24 * 12, "in 12 days"), (24, "in 1 day"), (3.5, "in 3 hours"), (-26, "1 day late"),
     (-0.01, "less than a minute late")],
)  # fmt: skip
def test_distances(hours: float, text: str) -> None:
    assert views.distance(NOW + timedelta(hours=hours), NOW) == text


def event(number: int, seconds: int, before: str | None, after: str) -> RequestEvent:
    at = NOW + timedelta(seconds=seconds)
    return RequestEvent(id=number, request_id="r", at=at, from_state=before, to_state=after)


def test_each_state_lasts_until_the_next_and_an_open_one_until_now() -> None:
    events = [event(1, 0, None, "queued"), event(2, 3, "queued", "queued"), event(3, 5, "queued", "unlearning")]
    rows = views.timeline(events, NOW + timedelta(seconds=25))
    assert [(row.state, row.lasted, row.is_now, row.is_move) for row in rows] == [
        ("queued", "5.0 s", False, True), ("queued", "", False, False), ("unlearning", "20 s", True, True),
    ]  # fmt: skip
    ended = views.timeline([*events[:1], event(4, 9, "queued", "cancelled")], NOW + timedelta(days=3))
    assert (ended[-1].lasted, ended[-1].is_now) == ("", False)


def run(**values: object) -> Run:
    fixed = {"id": "run", "line": "default", "stage": "unlearning", "base_digest": "b", "policy_digest": "p", "seed": 1}
    return Run(**{**fixed, "created_at": NOW, "updated_at": NOW, "finished_at": None, **values})


def attempt(step: int, method: str, verdict: str | None = None) -> Attempt:
    finished = NOW + timedelta(seconds=4) if verdict else None
    return Attempt(
        run_id="run", step=step, method=method, seed=1, verdict=verdict, started_at=NOW, finished_at=finished
    )


def test_a_ladder_shows_what_was_tried_is_tried_and_waits() -> None:
    steps = ("a", "b", "retrain", "retrain", "retrain")
    rungs = views.ladder(steps, [attempt(0, "a", "FAILED"), attempt(1, "b")], run(), NOW + timedelta(seconds=8))
    assert [(rung.method, rung.state, rung.took, rung.last) for rung in rungs] == [
        ("a", "FAILED", "4.0 s", None), ("b", "now", "8.0 s", None), ("retrain", "waiting", "", 4),
    ]  # fmt: skip


def test_what_was_not_needed_is_not_shown() -> None:
    assert len(views.ladder(("a", "b"), [attempt(0, "a", "PASSED")], run(), NOW)) == 1
    ended = run(finished_at=NOW)
    assert [rung.state for rung in views.ladder(("a", "b"), [attempt(0, "a")], ended, NOW)] == ["stopped"]
    assert views.ladder((), [], run(), NOW) == []
