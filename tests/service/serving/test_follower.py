"""The follower and the coordinator together, in one process, with real engines and a lease moved by hand."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from service.context import LINE, utc_now
from service.errors import TryLaterError, WeightsError
from service.models import registry
from service.models.barrier import look
from service.models.commit_word import CommitWord
from service.models.deployment import abort, activate_first, commit, deploy, stage
from service.serving.batching import MicroBatcher
from service.serving.follower import Follower
from service.serving.slot import InFlight, Lease, ModelSlot, Moment
from service.store.engine import session
from service.store.process_marks import mark_of, this_host
from service.store.tables import Deployment, ServingWorker
from tests.service.versions import add_version, pixels_of, reference_probabilities
from tests.waiting import PATIENCE_SECONDS, join, wait_until


class Process:
    """The swapping half of a serving process; `steps()` does what its threads would do."""

    def __init__(self, context, clock, **options) -> None:
        self.hands = clock
        self.word = CommitWord(context.settings.commit_word_path)
        self.lease = Lease(context.settings.lease_seconds, lambda: Moment(clock.at.timestamp(), clock.at.timestamp()))
        self.slot = ModelSlot(self.word, self.lease)
        self.batcher = MicroBatcher(self.slot, max_queue=10)
        self.follower = Follower(context, self.slot, self.lease, self.word, self.batcher, **options)
        self.batcher.start()

    def steps(self) -> None:
        self.follower.renew()
        self.follower.step()

    def generation(self) -> int | str:
        """What a prediction is answered with now, or why it is not."""
        request = InFlight()
        try:
            return asyncio.run(self.batcher.predict(pixels_of(1), request)).engine.generation
        except TryLaterError as error:
            return error.detail
        finally:
            self.slot.finish(request)

    def close(self) -> None:
        self.batcher.stop()
        self.word.close()


@pytest.fixture
def clock(clock):
    """From the present on: a row that began long before this process did would be another process's."""
    clock.at = datetime.now(UTC)
    return clock


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"api_workers": 1})


@pytest.fixture
def digests(context):
    return [add_version(context, seed) for seed in range(3)]


@pytest.fixture
def process(context, clock):
    made: list[Process] = []

    def make(**options) -> Process:
        made.append(Process(context, clock, **options))
        made[-1].follower.register()
        return made[-1]

    yield make
    for each in made:
        each.close()


def row_of(context, process) -> ServingWorker:
    return next(row for row, _ in look(context).rows if row.boot_id == process.follower.boot_id)


def test_without_a_model_it_starts_and_says_so(process):
    found = process()
    found.steps()
    assert "train one first" in found.follower.why_not_ready()
    assert "train one first" in found.generation()


def test_restored_weights_that_remember_somebody_erased_are_not_served(context, process, digests):
    activate_first(context, digests[0])
    with session(context.engine) as s:
        pointer = s.get_one(Deployment, LINE)
        pointer.oldest_allowed_generation = 2
        s.add(pointer)
        s.commit()
    found = process()
    found.steps()
    assert "restored from a backup" in row_of(context, found).last_error
    assert found.follower.why_not_ready()
    assert isinstance(found.generation(), str)
    stage(context, digests[1])
    found.steps()
    assert row_of(context, found).staged_generation == 2
    commit(context, 2)
    found.steps()
    assert found.generation() == 2
    assert found.follower.why_not_ready() is None


def test_it_registers_before_it_reads_the_pointer(context, process, digests):
    activate_first(context, digests[0])
    found = process()
    assert row_of(context, found).acknowledged_generation == -1
    assert found.slot.current is None
    found.steps()
    row = row_of(context, found)
    assert (row.acknowledged_generation, row.expected, row.acknowledged_at) == (1, 1, context.now())
    assert found.follower.why_not_ready() is None
    assert found.generation() == 1


def test_a_first_version_reaches_a_process_that_runs(context, process, digests):
    found = process()
    found.steps()
    activate_first(context, digests[0])
    found.steps()
    assert found.generation() == 1


def test_a_staged_version_waits_beside_the_active_one(context, process, digests):
    activate_first(context, digests[0])
    found = process()
    found.steps()
    stage(context, digests[1])
    found.steps()
    assert row_of(context, found).staged_generation == 2
    assert (found.slot.current.generation, found.slot.staged.generation) == (1, 2)
    assert found.generation() == 1
    commit(context, 2)
    assert found.generation() == 2  # the word alone: no step in between
    assert row_of(context, found).acknowledged_generation == 1
    found.steps()
    assert row_of(context, found).acknowledged_generation == 2


def test_answers_are_those_of_the_version_they_name(context, process, digests):
    images = np.stack([pixels_of(seed) for seed in range(8)])
    activate_first(context, digests[0])
    found = process()
    for digest in digests:
        commit(context, stage(context, digest))
        found.steps()
        predictions = [asyncio.run(found.batcher.predict(image, InFlight())) for image in images]
        assert {each.engine.digest for each in predictions} == {digest}
        expected = reference_probabilities(context, digest, images)
        np.testing.assert_allclose([each.probabilities for each in predictions], expected, atol=0.03)


def test_it_acknowledges_only_when_the_last_older_response_has_left(context, process, digests):
    activate_first(context, digests[0])
    found = process()
    found.steps()
    slow = InFlight()
    asyncio.run(found.batcher.predict(pixels_of(1), slow))
    commit(context, stage(context, digests[1]))
    found.steps()
    assert found.generation() == 2
    assert row_of(context, found).acknowledged_generation == 1
    found.slot.finish(slow)
    found.steps()
    assert row_of(context, found).acknowledged_generation == 2


def test_an_idle_process_swaps_and_acknowledges(context, process, digests):
    activate_first(context, digests[0])
    found = process()
    found.steps()
    commit(context, stage(context, digests[1]))
    found.steps()
    assert row_of(context, found).acknowledged_generation == 2


def test_an_aborted_staging_is_dropped(context, process, digests):
    activate_first(context, digests[0])
    found = process()
    found.steps()
    generation = stage(context, digests[1])
    found.steps()
    abort(context, generation)
    found.steps()
    assert found.slot.staged is None
    assert found.generation() == 1


def test_weights_altered_after_staging_leave_the_old_version_serving(context, process, digests):
    activate_first(context, digests[0])
    found = process()
    found.steps()
    rows: list[ServingWorker] = []

    def sleep(_: float) -> None:
        registry.path(context.settings, digests[1]).write_bytes(b"altered")
        found.steps()
        rows.append(row_of(context, found))
        assert found.follower.why_not_ready() == rows[-1].last_error

    with pytest.raises(WeightsError, match="no serving process could load them"):
        deploy(context, digests[1], sleep=sleep)
    assert rows[-1].last_error.startswith("generation 2: Expected weights with SHA-256")
    assert found.generation() == 1
    found.steps()
    assert found.follower.why_not_ready() is None
    assert row_of(context, found).last_error == ""


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(0)], ids=repr)
def test_a_version_that_cannot_be_loaded_is_tried_again_after_a_while(context, process, clock, digests, error):
    tries = []

    def load(digest: str, generation: int):
        tries.append(generation)
        raise error

    activate_first(context, digests[0])
    found = process(load=load)
    for _ in range(3):
        found.steps()
    assert tries == [1]
    assert found.follower.why_not_ready() == "The model of generation 1 is active but not loaded here yet."
    told = {MemoryError: "MemoryError", SystemExit: "ExitedError"}[type(error)]
    assert row_of(context, found).last_error == f"generation 1: {told} while loading."
    clock.advance(seconds=1.1)
    found.steps()
    assert tries == [1, 1]


def test_a_committed_version_it_could_not_stage_stops_the_process_until_loaded(context, process, digests):
    activate_first(context, digests[0])
    found = process()
    found.steps()
    commit(context, stage(context, digests[1]))  # as if this process had been fenced meanwhile
    assert "not loaded" in found.generation()
    found.steps()
    assert found.generation() == 2


def test_a_frozen_process_refuses_what_it_computed_and_answers_with_the_new_version(context, process, clock, digests):
    activate_first(context, digests[0])
    found = process()
    found.steps()
    frozen = InFlight()
    asyncio.run(found.batcher.predict(pixels_of(1), frozen))
    clock.advance(seconds=60)  # stopped in the middle of its response
    barrier = deploy(context, digests[1])
    assert barrier.generation == 2
    assert "lease" in found.generation()
    assert not found.slot.may_send(frozen)
    found.follower.renew()  # it wakes, the heartbeat first
    assert not found.slot.may_send(frozen)
    assert "generation 2 is active but not loaded" in found.generation()
    found.follower.step()
    assert found.generation() == 2
    assert row_of(context, found).acknowledged_generation == 1
    found.slot.finish(frozen)  # refused, and counted as gone
    found.steps()
    assert row_of(context, found).acknowledged_generation == 2


def test_a_row_taken_away_comes_back_with_the_next_heartbeat(context, process, digests):
    activate_first(context, digests[0])
    found = process()
    found.steps()
    with session(context.engine) as s:
        s.delete(s.get(ServingWorker, found.follower.boot_id))
        s.commit()
    found.steps()
    assert row_of(context, found).acknowledged_generation == 1


def test_rows_of_those_that_ended_are_taken_away_at_the_next_start(context, process, clock):
    for boot_id, host, pid, age in (
        ("ended", "", 2**22 + 1, 0),
        ("old", "elsewhere", 1, 2),
        ("new", "elsewhere", 1, 0),
    ):
        now = clock.at - timedelta(days=age)
        with session(context.engine) as s:
            s.add(
                ServingWorker(
                    boot_id=boot_id, line="default", host=host or this_host(), pid=pid,
                    process=mark_of(os.getpid()) if boot_id == "ended" else None, expected=1,
                    started_at=datetime.now(UTC), heartbeat_at=now, lease_until=now,
                )
            )  # fmt: skip
            s.commit()
    found = process()
    assert {row.boot_id for row, _ in look(context).rows} == {"new", found.follower.boot_id}


def test_a_database_older_than_the_word_is_noticed(context, process, digests):
    activate_first(context, digests[0])
    found = process()
    found.steps()
    found.word.advance(9)
    found.steps()
    assert "remove commit.word" in row_of(context, found).last_error
    assert found.follower.why_not_ready() is not None


def test_a_word_lost_in_a_crash_is_written_anew(context, process, digests):
    activate_first(context, digests[0])
    context.settings.commit_word_path.unlink()
    found = process()
    found.steps()
    assert found.word.read() == 1


def test_the_threads_do_it_all_by_themselves(context, digests):
    """Real clocks and threads: swaps under traffic, nothing failed, nothing older after the barrier."""
    live = type(context)(context.settings, context.engine, context.keyring, now=utc_now)
    activate_first(live, digests[0])
    word, lease = CommitWord(context.settings.commit_word_path), Lease(context.settings.lease_seconds)
    slot = ModelSlot(word, lease)
    batcher = MicroBatcher(slot, max_queue=100)
    swaps: list[int] = []
    seconds: list[float] = []

    def on_swap(generation: int, took: float) -> None:
        swaps.append(generation)
        seconds.append(took)

    follower = Follower(live, slot, lease, word, batcher, on_swap=on_swap)
    batcher.start()
    follower.start()
    answers: list[tuple[float, int]] = []
    stop = threading.Event()

    async def traffic() -> None:
        while not stop.is_set():
            request, began = InFlight(), time.monotonic()
            prediction = await batcher.predict(pixels_of(2), request)
            slot.finish(request)
            answers.append((began, prediction.engine.generation))

    thread = threading.Thread(target=lambda: asyncio.run(traffic()), daemon=True)
    thread.start()
    try:
        for digest in digests[1:]:
            barrier = deploy(live, digest, timeout_seconds=PATIENCE_SECONDS)
            reached = time.monotonic()

            def answered_after(moment: float = reached) -> list[int]:
                return [generation for began, generation in list(answers) if began > moment]

            wait_until(lambda: len(answered_after()) >= 10, "answers after the barrier")
            assert set(answered_after()) == {barrier.generation}
            assert [row.kind for row in barrier.processes] == ["acknowledged"]
    finally:
        stop.set()
        join(thread)
        follower.stop()
        batcher.stop()
        word.close()
    assert swaps == [1, 2, 3]
    generations = [generation for _, generation in answers]
    assert generations == sorted(generations)
    assert look(live).rows == ()
