from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from sqlmodel import select

from service.errors import RunStoppedError
from service.models import shadowing
from service.models.deployment import activate_first, commit, stage
from service.models.shadowing import BOUNDS, FEWEST_OF_CLASS, MOVED, OTHERS, Figures, added_up, coarse, compare
from service.store.engine import reading, session
from service.store.process_marks import this_host
from service.store.tables import ServingWorker, ShadowPart
from tests.service.versions import add_version
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.both_databases


def figures(images: int, changed: int = 0, failed: int = 0) -> Figures:
    answered = images - failed
    return Figures(images, changed, failed, 0.02 * answered, (0, answered, 0, 0, 0, 0))


@pytest.fixture
def context(context):
    settings = context.settings.model_copy(
        update={"shadow_seconds": 60.0, "shadow_share": 0.5, "shadow_images": 1000, "api_workers": 1}
    )
    return replace(context, settings=settings)


@pytest.fixture
def staged(context):
    """A version in service, another one staged as generation 2, and a process that serves."""
    active, digest = (add_version(context, seed) for seed in range(2))
    activate_first(context, active)
    stage(context, digest)
    with session(context.engine) as s:
        s.add(
            ServingWorker(
                boot_id="a", line="default", host=this_host(), pid=os.getpid(), expected=1, staged_generation=2,
                acknowledged_generation=1, started_at=datetime.now(UTC), heartbeat_at=context.now(),
                lease_until=context.now() + timedelta(days=1),
            )
        )  # fmt: skip
        s.commit()
    return digest


class Traffic:
    """What the serving processes count while `compare` sleeps; the clocks go on by a second each time."""

    def __init__(self, clock, context, *parts: tuple[str, int, dict[int, Figures]]) -> None:
        self.clock, self.context, self.parts = clock, context, list(parts)
        self.n_slept = 0

    def sleep(self, _: float) -> None:
        self.n_slept += 1
        self.clock.advance(seconds=1)
        if self.parts:
            boot_id, generation, counts = self.parts.pop(0)
            shadowing.write_part(self.context, "run", boot_id, generation, counts)

    def compare(self, digest: str, bar: float = 0.0, **options) -> None:
        compare(
            self.context, "run", digest, changed_max=lambda: bar, sleep=self.sleep,
            steady=lambda: self.clock().timestamp(), **options,
        )  # fmt: skip


def ended(context) -> shadowing.Comparison | None:
    with reading(context.engine) as s:
        return shadowing.find(s, "run")


def parts_left(context) -> int:
    with reading(context.engine) as s:
        return len(s.exec(select(ShadowPart)).all())


def test_figures_are_what_a_naive_count_gives():
    rng = np.random.default_rng(0)
    moved, changed = np.concatenate([rng.random(200) ** 4, BOUNDS]), rng.random(206) < 0.2
    total = added_up(Figures.of(label_changed=bool(c), moved=float(m)) for c, m in zip(changed, moved, strict=True))
    lower = (-1.0, *BOUNDS[:-1])
    histogram = [sum(low < m <= high for m in moved) for low, high in zip(lower, BOUNDS, strict=True)]
    assert (total.images, total.labels_changed, total.failed) == (206, changed.sum(), 0)
    assert list(total.histogram) == histogram
    assert total.confidence_changed == sum(moved > MOVED)
    assert total.share_changed == changed.mean()
    assert total.mean_moved == pytest.approx(moved.mean())


def test_a_rounding_error_above_the_largest_bound_counts_in_the_last_bucket():
    assert Figures.of(label_changed=True, moved=1.0000001).histogram == (0, 0, 0, 0, 0, 1)


def test_a_failed_image_counts_as_a_changed_one():
    assert figures(10, changed=2, failed=3).share_changed == 0.5
    assert Figures().share_changed == Figures().mean_moved == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_no_class_is_told_of_fewer_images_than_the_least_nor_can_be_found_from_the_total(seed):
    rng = np.random.default_rng(seed)
    counts = {place: figures(int(n), int(n) // 3) for place, n in enumerate(rng.integers(1, 60, rng.integers(1, 9)))}
    found = coarse(counts)
    assert sum(each.images for each in found.values()) == sum(each.images for each in counts.values())
    told = added_up(counts.values()).is_told
    assert all(each.images >= FEWEST_OF_CLASS for each in found.values()) == told
    assert {place: each for place, each in found.items() if place != OTHERS}.items() <= counts.items()
    if told:
        assert added_up(found.values()).labels_changed == added_up(counts.values()).labels_changed
    else:
        assert asdict(found[OTHERS]) == asdict(Figures(images=found[OTHERS].images))


def test_counts_of_all_processes_are_added_up_when_the_time_is_over(context, clock, staged):
    traffic = Traffic(
        clock, context,
        ("a", 2, {0: figures(30, 3)}),
        ("b", 2, {0: figures(10, 1), 1: figures(40, 4)}),
        ("a", 2, {0: figures(60, 6)}),  # the same process, more by now
        ("c", 2, {2: figures(25, failed=5)}),  # in the place of one that was killed
    )  # fmt: skip
    told: list[str] = []
    traffic.compare(staged, note=told.append)
    found = ended(context)
    assert found is not None
    assert dict(found.counts) == {0: figures(60, 6) + figures(10, 1), 1: figures(40, 4), 2: figures(25, failed=5)}
    assert traffic.n_slept == 60
    assert (found.ended_at - found.began_at).total_seconds() == 60
    assert told == [f"comparing answers to live predictions {n}/1000" for n in (0, 30, 80, 110, 135)]
    assert parts_left(context) == 0
    assert found.sentence() == (
        "The candidate answered 135 live predictions too: 8.1% would have another label, and the probability of 0.0% "
        "would change by more than 0.05. It could not answer 5."
    )
    assert found.summary() == {
        "images": 135, "share": 0.5, "labels_changed": 11, "failed": 5, "confidence_changed": 0,
        "confidence_changed_above": 0.05,
    }  # fmt: skip


def test_it_ends_when_enough_was_seen(context, clock, staged):
    traffic = Traffic(clock, context, ("a", 2, {0: figures(400)}), ("b", 2, {0: figures(600)}))
    traffic.compare(staged)
    assert traffic.n_slept == 2
    assert ended(context).total.images == 1000


def test_a_process_cannot_write_after_the_end(context, clock, staged):
    Traffic(clock, context, ("a", 2, {0: figures(1000)})).compare(staged)
    shadowing.write_part(context, "run", "a", 2, {0: figures(1001)})
    shadowing.write_part(context, "another run", "a", 2, {0: figures(1001)})
    assert parts_left(context) == 0
    assert ended(context).total.images == 1000


@pytest.mark.parametrize("bar", [0.0, 0.01])
def test_without_predictions_it_says_so_and_goes_on(context, clock, staged, bar):
    traffic = Traffic(clock, context)
    traffic.compare(staged, bar)
    assert traffic.n_slept == 60
    assert ended(context).sentence() == "No predictions came to compare the candidate's answers with."
    assert ended(context).summary() == {"images": 0, "share": 0.5}


def test_where_nobody_serves_nothing_is_waited_for(context, clock, staged):
    with session(context.engine) as s:
        s.delete(s.get(ServingWorker, "a"))
        s.commit()
    traffic = Traffic(clock, context)
    traffic.compare(staged)
    assert traffic.n_slept == 0
    assert ended(context).total.images == 0


def test_switched_off_it_does_nothing(context, clock, staged):
    off = replace(context, settings=context.settings.model_copy(update={"shadow_seconds": 0.0}))
    Traffic(clock, off).compare(staged, 0.01)
    assert ended(context) is None
    assert shadowing.find_open(context, staged) is None


def test_what_an_abandoned_run_left_goes(context, clock, staged):
    shadowing._begin(context, "abandoned", staged)
    shadowing.write_part(context, "abandoned", "a", 2, {0: figures(3)})
    Traffic(clock, context, ("a", 2, {0: figures(1000)})).compare(staged)
    assert (parts_left(context), ended(context).total.images) == (0, 1000)
    assert shadowing.find_open(context, staged) is None


def test_it_is_open_for_the_staged_version_only_and_until_it_ends(context, clock, staged):
    seen = []
    traffic = Traffic(clock, context, ("a", 2, {0: figures(1000)}))
    traffic.compare(
        staged, note=lambda _: seen.append((shadowing.find_open(context, staged), shadowing.find_open(context, "x")))
    )
    assert seen == [(shadowing.Open("run", 0.5), None)]
    assert shadowing.find_open(context, staged) is None


def test_more_changes_than_the_bar_allows_stop_the_run(context, clock, staged):
    traffic = Traffic(clock, context, ("a", 2, {0: figures(1000, 40, failed=20)}))
    with pytest.raises(RunStoppedError, match=r"at most 5\.0% .* 4\.0% would have another label") as caught:
        traffic.compare(staged, 0.05)
    assert "approve" in caught.value.detail
    with pytest.raises(RunStoppedError, match="at most"):  # the step is repeated after a kill: no second measurement
        traffic.compare(staged, 0.05)
    assert traffic.n_slept == 1
    traffic.compare(staged, 0.06)


def test_too_few_predictions_are_not_held_against_the_bar(context, clock, staged, log_stream):
    Traffic(clock, context, ("a", 2, {0: figures(99, 99)})).compare(staged, 0.05)
    assert "shadow.not_judged" in log_stream.getvalue()


def test_a_candidate_that_is_active_already_is_not_compared(context, clock, staged):
    """The step is repeated after a kill between the commit and its record; the policy may be another one by now."""
    commit(context, 2)

    def no_policy() -> float:
        raise RunStoppedError("another policy")

    traffic = Traffic(clock, context)
    compare(context, "run", staged, changed_max=no_policy, sleep=traffic.sleep)
    assert (traffic.n_slept, ended(context)) == (0, None)


WORKER = """
    import time
    from datetime import UTC, datetime
    from service.context import Context
    from service.models.shadowing import compare
    from service.settings import Settings

    compare(Context.open(Settings()), "run", {digest!r})
"""


def test_a_killed_worker_goes_on_with_what_is_left_of_the_time(context, clock, staged, monkeypatch):
    clock.at = datetime.now(UTC)
    with session(context.engine) as s:  # the process's lease, by the same clock
        s.get(ServingWorker, "a").lease_until = clock.at + timedelta(days=1)
        s.commit()
    settings = context.settings
    for name in ("home", "database_url", "shadow_seconds", "shadow_share"):
        monkeypatch.setenv(f"EXPUNGE_{name.upper()}", str(getattr(settings, name)))
    worker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(WORKER).format(digest=staged)])
    try:
        wait_until(lambda: shadowing.find_open(context, staged) is not None, "the comparison to begin")
    finally:
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait(PATIENCE_SECONDS)
    shadowing.write_part(context, "run", "a", 2, {0: figures(150, 15)})  # counted on while no worker was there
    with reading(context.engine) as s:
        clock.at = s.get(shadowing.ShadowComparison, "run").began_at + timedelta(seconds=50)
    traffic = Traffic(clock, context, ("b", 2, {0: figures(50, 5)}))
    with pytest.raises(RunStoppedError, match="answered 200 live predictions"):
        traffic.compare(staged, 0.09)
    assert traffic.n_slept == 10
