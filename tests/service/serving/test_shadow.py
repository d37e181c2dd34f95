"""The shadow beside real engines and beside ones that do wrong; and the follower that opens and closes it."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from service.errors import EngineError
from service.models import shadowing
from service.models.deployment import abort, activate_first, commit, stage
from service.models.shadowing import MOVED, Figures, added_up
from service.serving.batching import MicroBatcher
from service.serving.shadow import Shadow
from service.serving.slot import InFlight
from service.store.engine import reading
from service.store.tables import ShadowPart
from tests.service.serving.test_batching import Gate, batcher, gate, image, slot  # noqa: F401
from tests.service.serving.test_follower import Process, clock, process, settings  # noqa: F401
from tests.service.versions import add_version, engine_of, pixels_of
from tests.waiting import PATIENCE_SECONDS, play, wait_until

N_IMAGES = 60


class Candidate(Gate):
    """Says the other of two classes of every image brighter than 100."""

    generation = 2
    classes = ("dark", "bright")

    def predict(self, images: np.ndarray) -> np.ndarray:
        super().predict(images)
        value = images.reshape(len(images), -1)[:, 0].astype(np.float32) / 255
        return np.stack([1 - value, value], axis=1)


class Active(Candidate):
    """Says `dark` of everything."""

    generation = 1

    def predict(self, images: np.ndarray) -> np.ndarray:
        Gate.predict(self, images)
        return np.tile(np.float32([0.9, 0.1]), (len(images), 1))


@pytest.fixture
def gate() -> Gate:  # noqa: F811
    return Active()


def shadow_of(engine, share: float = 1.0) -> Shadow:
    return Shadow(engine, "run", share, random.Random(0), steady=lambda: 0.0)


def answer(batcher: MicroBatcher, *values: int) -> list:  # noqa: F811
    """Predictions of these images, each a batch of its own; and the shadow is done with them."""
    found = [play(batcher.predict(image(value), InFlight())) for value in values]
    batcher.on_inference_thread(lambda: None).result(PATIENCE_SECONDS)
    return found


def test_what_it_counts(batcher):  # noqa: F811
    batcher.shadow = shadow_of(Candidate())
    found = answer(batcher, 4, 20, 200, 255)
    assert {prediction.engine.generation for prediction in found} == {1}
    assert [prediction.probabilities.tolist() for prediction in found] == [pytest.approx([0.9, 0.1])] * 4
    after = np.array([4, 20, 200, 255]) / 255  # of `bright`
    moved = np.abs((1 - after) - 0.9)
    assert batcher.shadow.counts == {
        0: Figures(4, 2, 0, pytest.approx(moved.sum(), abs=1e-5), (0, 1, 1, 0, 0, 2)),
    }


def test_images_of_one_call_are_compared_together_and_those_without_an_answer_not_at_all(batcher, gate):  # noqa: F811
    batcher.shadow = shadow_of(Candidate())
    play(batcher.predict_together([image(0), image(200), image(255)], InFlight()))
    gate.error = EngineError("broken")
    with pytest.raises(EngineError):
        answer(batcher, 200)
    batcher.on_inference_thread(lambda: None).result(PATIENCE_SECONDS)
    assert (batcher.shadow.counts[0].images, batcher.shadow.counts[0].labels_changed) == (3, 2)


def test_a_candidate_that_fails_touches_no_answer(batcher):  # noqa: F811
    candidate = Candidate()
    candidate.error = MemoryError()
    batcher.shadow = shadow_of(candidate)
    assert [prediction.best for prediction in answer(batcher, 1, 2)] == [0, 0]
    assert candidate.sizes == [1, 1]
    assert batcher.shadow.counts == {0: Figures(images=2, failed=2)}


def test_another_number_of_results_is_a_failure(batcher):  # noqa: F811
    candidate = Candidate()
    candidate.predict = lambda images: np.zeros((len(images) + 1, 2), np.float32)
    batcher.shadow = shadow_of(candidate)
    answer(batcher, 1)
    assert batcher.shadow.counts == {0: Figures(images=1, failed=1)}


def test_an_error_of_its_own_ends_neither_the_thread_nor_an_answer(batcher, log_stream):  # noqa: F811
    batcher.shadow = shadow_of(Candidate())
    batcher.shadow.engine = None
    assert len(answer(batcher, 1, 2, 3)) == 3
    assert "shadow.disturbed" in log_stream.getvalue()


def test_answers_are_handed_out_before_it_begins(batcher):  # noqa: F811
    candidate = Candidate()
    candidate.open.clear()
    batcher.shadow = shadow_of(candidate)
    try:
        assert play(batcher.predict(image(255), InFlight())).best == 0  # while the candidate hangs
        assert candidate.entered.wait(PATIENCE_SECONDS)
        assert batcher.shadow.counts == {}
    finally:
        candidate.open.set()


def test_a_slow_candidate_gets_no_more_than_its_share_of_the_time():
    """Each batch takes 1 s, the candidate 9 s."""
    now = [0.0]
    candidate, active = Candidate(), Active()
    candidate.predict = lambda images: now.__setitem__(0, now[0] + 9.0) or np.zeros((len(images), 2), np.float32)
    shadow, n_batches = Shadow(candidate, "run", 0.5, random.Random(0), steady=lambda: now[0]), 2000
    prediction = _prediction(active)
    for _ in range(n_batches):
        shadow.see([(image(1), prediction)])
    assert 0.7 * 0.5 * n_batches < now[0] <= 0.5 * n_batches + 9


def test_as_quick_as_the_other_it_gets_a_random_share():
    shadow, prediction = shadow_of(Candidate(), 0.25), _prediction(Active())
    for _ in range(4000):
        shadow.see([(image(1), prediction)])
    assert 850 < shadow.counts[0].images < 1150  # false positive rate: below 1e-7


def _prediction(engine):
    from service.serving.batching import Prediction

    return Prediction(np.float32([0.9, 0.1]), 0, engine, 1, 0.0, 1.0)


def test_images_that_do_not_fit_and_answers_of_the_candidate_itself_are_not_compared():
    other = Candidate()
    other.input_shape = (4, 4, 1)
    for candidate, active in ((other, Active()), (Candidate(), Candidate())):
        shadow = shadow_of(candidate)
        shadow.see([(image(1), _prediction(active))])
        shadow.see([])
        assert (shadow.counts, candidate.sizes) == ({}, [])


def test_classes_are_compared_by_name_and_one_that_is_gone_has_probability_0():
    renamed = Candidate()
    renamed.classes = ("bright", "night")
    shadow = shadow_of(renamed)
    shadow.see([(image(0), _prediction(Active()))])  # says "bright" with probability 1; there is no "dark" any more
    assert shadow.counts == {0: Figures(1, 1, 0, pytest.approx(0.9, abs=1e-6), (0, 0, 0, 0, 0, 1))}


@pytest.fixture
def compared(context, process, monkeypatch):  # noqa: F811
    """A process with generation 1 in service and 2 staged, both equally quick."""
    monkeypatch.setattr("service.serving.follower.Shadow", partial(Shadow, steady=lambda: 0.0))
    context = replace(
        context, settings=context.settings.model_copy(update={"shadow_seconds": 60.0, "shadow_share": 1.0})
    )
    digests = [add_version(context, seed) for seed in range(2)]
    activate_first(context, digests[0])
    found = process()
    found.steps()
    stage(context, digests[1])
    found.steps()
    return context, found, digests


def counts_of(context) -> list[dict[int, Figures]]:
    with reading(context.engine) as s:
        return [shadowing.from_json(row.counts) for row in s.exec(shadowing.select(ShadowPart))]


def naive(context, digests, seeds) -> dict[int, Figures]:
    """Counts of images one at a time, outside of the serving process."""
    before, after = (engine_of(context, digest) for digest in digests)
    counted: dict[int, list[Figures]] = defaultdict(list)
    for seed in seeds:
        (was,), (now,) = (engine.predict(pixels_of(seed)[np.newaxis]) for engine in (before, after))
        best, moved = int(was.argmax()), abs(float(now[was.argmax()]) - float(was.max()))
        counted[best].append(Figures.of(label_changed=int(now.argmax()) != best, moved=moved))
    return {place: added_up(each) for place, each in counted.items()}


def test_a_live_process_counts_what_the_staged_engine_changes(compared, clock):  # noqa: F811
    context, found, digests = compared
    asked: Counter[int] = Counter()

    def traffic(_: float) -> None:
        found.steps()
        for seed in range(asked.total(), asked.total() + 15):
            asked[seed] += found.slot.current.generation  # who answers is the model in service
            assert _answer(found, seed).engine.generation == 1
        clock.advance(seconds=2)
        found.steps()

    shadowing.compare(
        context, "run", digests[1], sleep=traffic, steady=lambda: clock().timestamp(), note=lambda _: None
    )  # fmt: skip
    with reading(context.engine) as s:
        comparison = shadowing.find(s, "run")
    expected = shadowing.coarse(naive(context, digests, sorted(asked)))
    assert sorted(comparison.counts) == sorted(expected)
    for place, figures in comparison.counts.items():
        assert replace(figures, moved=0.0) == replace(expected[place], moved=0.0)
        assert figures.moved == pytest.approx(expected[place].moved, rel=1e-3)
    assert 0 < comparison.total.labels_changed < comparison.total.images == len(asked)
    assert comparison.total.confidence_changed > 0, MOVED
    found.steps()
    assert found.batcher.shadow is None
    commit(context, 2)
    assert found.generation() == 2


def _answer(found: Process, seed: int):
    request = InFlight()
    try:
        return play(found.batcher.predict(pixels_of(seed), request))
    finally:
        found.slot.finish(request)
        found.batcher.on_inference_thread(lambda: None).result(PATIENCE_SECONDS)


def test_nothing_is_computed_while_nothing_is_compared(compared):
    _, found, _ = compared
    found.steps()
    assert found.slot.staged is not None
    assert found.batcher.shadow is None


@pytest.mark.parametrize("how", ["taken back", "committed"])
def test_it_ends_with_the_staging(compared, clock, how):  # noqa: F811
    context, found, digests = compared
    shadowing._begin(context, "run", digests[1])
    found.steps()
    assert found.batcher.shadow.engine is found.slot.staged
    _answer(found, 1)
    clock.advance(seconds=2)
    found.steps()
    assert added_up(counts_of(context)[0].values()).images == 1
    if how == "committed":
        commit(context, 2)
    else:
        abort(context, 2)
    found.steps()
    assert found.batcher.shadow is None


def test_a_restarted_process_and_a_second_staging_count_beside_what_was_counted(compared, clock, process):  # noqa: F811
    context, found, digests = compared
    shadowing._begin(context, "run", digests[1])
    for _ in range(2):
        found.steps()
        _answer(found, 1)
        clock.advance(seconds=2)
        found.steps()
        abort(context, found.slot.staged.generation)
        found.steps()
        stage(context, digests[1])
        found.steps()
    other = process()  # in the place of the first
    other.steps()
    other.steps()
    _answer(other, 2)
    clock.advance(seconds=2)
    other.steps()
    assert [added_up(counts.values()).images for counts in counts_of(context)] == [1, 1, 1]


def test_a_swap_does_not_take_as_long_as_the_comparison_before_it(context, compared, clock, process):  # noqa: F811
    context, _, digests = compared
    seconds: list[float] = []
    found = process(on_swap=lambda _generation, lasted: seconds.append(lasted))
    found.steps()
    shadowing._begin(context, "run", digests[1])
    for _ in range(5):
        found.steps()
        clock.advance(seconds=2)
    found.steps()
    shadowing._end(context, "run")
    found.steps()
    commit(context, 2)
    clock.advance(seconds=1)
    found.steps()
    wait_until(lambda: len(seconds) == 2, "the swap")
    assert seconds[-1] == pytest.approx(1)


def test_counts_may_be_read_while_they_grow():
    shadow, prediction = shadow_of(Candidate()), _prediction(Active())
    done = threading.Event()

    def grow() -> None:
        for place in range(3000):
            shadow._count(place, Figures(images=1))
        shadow.see([(image(1), prediction)])
        done.set()

    thread = threading.Thread(target=grow)
    thread.start()
    while not done.is_set():
        assert all(figures.images for figures in shadow.counts.values())
    thread.join(PATIENCE_SECONDS)
    assert len(shadow.counts) == 3000
