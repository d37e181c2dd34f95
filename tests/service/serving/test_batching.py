from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest

from service.errors import EngineError, TryLaterError
from service.models.commit_word import CommitWord
from service.serving.batching import InputChangedError, MicroBatcher
from service.serving.slot import InFlight, Lease, ModelSlot
from tests.waiting import PATIENCE_SECONDS, play, until
from unlearning.errors import ExitedError

SHAPE = (2, 2, 1)


class Gate:
    """An engine that answers with the image's own value once its gate is open, and remembers its batches."""

    generation, input_shape = 1, SHAPE

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()
        self.sizes: list[int] = []
        self.error: Exception | SystemExit | None = None

    def predict(self, images: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images))
        self.entered.set()
        assert self.open.wait(PATIENCE_SECONDS)
        if self.error is not None:
            raise self.error
        return images.reshape(len(images), -1)[:, :2].astype(np.float32)


def image(value: int) -> np.ndarray:
    return np.full(SHAPE, value, np.uint8)


@pytest.fixture
def gate():
    return Gate()


@pytest.fixture
def slot(tmp_path, gate):
    lease = Lease(1e9)
    lease.renew(lease.now())
    with CommitWord(tmp_path / "word") as word:
        slot = ModelSlot(word, lease)
        slot.stage(gate)
        slot.raise_floor(1)
        yield slot


@pytest.fixture
def batcher(slot, gate):
    batcher = MicroBatcher(slot, max_queue=100, max_batch=8)
    batcher.start()
    yield batcher
    gate.open.set()
    batcher.stop()


async def hold(batcher: MicroBatcher, gate: Gate) -> asyncio.Task:
    """A request whose batch is being computed until the gate opens."""
    gate.entered.clear()
    gate.open.clear()
    first = asyncio.ensure_future(batcher.predict(image(0), InFlight()))
    await until(gate.entered.is_set, "the batch to be computed")
    return first


def test_a_lone_request_is_answered_at_once(batcher, gate):
    answer = play(batcher.predict(image(7), InFlight()))
    assert answer.probabilities.tolist() == [7, 7]
    assert (answer.batch_size, answer.engine) == (1, gate)


def test_what_waits_while_it_computes_becomes_the_next_batch(batcher, gate):
    async def scenario() -> list[float]:
        first = await hold(batcher, gate)
        others = [asyncio.ensure_future(batcher.predict(image(i), InFlight())) for i in range(1, 20)]
        await asyncio.sleep(0)
        gate.open.set()
        return [float((await each).probabilities[0]) for each in [first, *others]]

    assert play(scenario()) == list(range(20))
    assert gate.sizes == [1, 8, 8, 3]


def test_who_asks_again_at_once_gets_into_the_next_batch(batcher, gate):
    """Else half of the clients would wait while the other half is computed, in batches of half the size."""

    async def client(value: int) -> None:
        for _ in range(3):
            assert (await batcher.predict(image(value), InFlight())).probabilities[0] == value

    async def scenario() -> None:
        first = await hold(batcher, gate)
        clients = [asyncio.ensure_future(client(value)) for value in range(1, 4)]
        await asyncio.sleep(0)
        first.add_done_callback(lambda _: clients.append(asyncio.ensure_future(client(4))))
        gate.open.set()
        await first
        await asyncio.sleep(0)
        await asyncio.gather(*clients)

    play(scenario())
    assert gate.sizes == [1, 4, 4, 4]


def test_images_of_one_call_stay_together(batcher, gate):
    async def scenario() -> list[list[float]]:
        first = await hold(batcher, gate)
        calls = [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10], list(range(11, 19)), [19]]
        others = [
            asyncio.ensure_future(batcher.predict_together([image(i) for i in call], InFlight())) for call in calls
        ]
        await asyncio.sleep(0)
        gate.open.set()
        await first
        return [[float(each.probabilities[0]) for each in await other] for other in others]

    assert play(scenario()) == [[1, 2, 3], [4, 5, 6], [7, 8, 9], [10], list(range(11, 19)), [19]]
    assert gate.sizes == [1, 6, 4, 8, 1]  # of eight at most


def test_a_call_larger_than_a_batch_is_a_batch(batcher, gate):
    found = play(batcher.predict_together([image(i) for i in range(20)], InFlight()))
    assert [float(each.probabilities[0]) for each in found] == list(range(20))
    assert gate.sizes == [20]


def test_times_are_told(batcher, gate):
    async def scenario():
        first = await hold(batcher, gate)
        second = asyncio.ensure_future(batcher.predict(image(1), InFlight()))
        await asyncio.sleep(0)
        waits = time.perf_counter()
        await until(lambda: time.perf_counter() > waits, "the clock to tick")
        least = time.perf_counter() - waits
        gate.open.set()
        return await first, await second, least, time.perf_counter() - began

    began = time.perf_counter()
    first, second, least, most = play(scenario())
    assert least <= first.computed_seconds <= most
    assert least <= second.waited_seconds <= most


def test_a_full_queue_refuses(slot, gate):
    batcher = MicroBatcher(slot, max_queue=3)
    batcher.start()

    async def scenario() -> None:
        first = await hold(batcher, gate)
        waiting = [asyncio.ensure_future(batcher.predict(image(1), InFlight())) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(TryLaterError, match="fewer than 3 images"):
            await batcher.predict(image(1), InFlight())
        gate.open.set()
        await asyncio.gather(first, *waiting)

    play(scenario())
    batcher.stop()


def test_an_image_of_another_shape_fails_alone(batcher, gate):
    async def scenario() -> None:
        first = await hold(batcher, gate)
        good = asyncio.ensure_future(batcher.predict(image(3), InFlight()))
        other = asyncio.ensure_future(batcher.predict(np.zeros((4, 4, 1), np.uint8), InFlight()))
        await asyncio.sleep(0)
        gate.open.set()
        await first
        assert (await good).probabilities[0] == 3
        with pytest.raises(InputChangedError):
            await other

    play(scenario())


def test_a_failing_batch_fails_its_requests_and_the_next_one_works(batcher, gate):
    async def scenario() -> None:
        gate.error = RuntimeError("no memory")
        with pytest.raises(RuntimeError, match="no memory"):
            await batcher.predict(image(1), InFlight())
        gate.error = None
        assert (await batcher.predict(image(2), InFlight())).probabilities[0] == 2

    play(scenario())


def test_a_network_that_exits_fails_its_requests_and_the_inference_thread_goes_on(batcher, gate):
    async def scenario() -> None:
        gate.error = SystemExit(0)
        with pytest.raises(ExitedError, match=r"called sys\.exit"):
            await batcher.predict(image(1), InFlight())
        warm_up = batcher.on_inference_thread(lambda: gate.predict(np.zeros((1, *SHAPE), np.uint8)))
        with pytest.raises(ExitedError, match=r"called sys\.exit"):
            warm_up.result(PATIENCE_SECONDS)
        gate.error = None
        assert (await batcher.predict(image(2), InFlight())).probabilities[0] == 2

    play(scenario())


def test_a_process_that_may_not_answer_says_so(slot, batcher):
    slot.raise_floor(2)
    with pytest.raises(TryLaterError, match="generation 2"):
        play(batcher.predict(image(1), InFlight()))


def test_a_cancelled_request_is_not_computed(batcher, gate):
    async def scenario() -> None:
        first = await hold(batcher, gate)
        doomed = asyncio.ensure_future(batcher.predict(image(1), InFlight()))
        await asyncio.sleep(0)
        doomed.cancel()
        gate.open.set()
        await first
        await batcher.predict(image(2), InFlight())

    play(scenario())
    assert gate.sizes == [1, 1]


def test_a_request_cancelled_while_it_is_computed_harms_nobody(batcher, gate):
    async def scenario() -> None:
        first = await hold(batcher, gate)
        first.cancel()
        gate.open.set()
        assert (await batcher.predict(image(2), InFlight())).probabilities[0] == 2

    play(scenario())


def test_jobs_run_on_the_inference_thread_between_batches(batcher, gate):
    name = batcher.on_inference_thread(lambda: threading.current_thread().name).result(PATIENCE_SECONDS)
    assert name == "inference"
    with pytest.raises(ZeroDivisionError):
        batcher.on_inference_thread(lambda: 1 / 0).result(PATIENCE_SECONDS)

    async def scenario() -> None:
        first = await hold(batcher, gate)
        second = asyncio.ensure_future(batcher.predict(image(1), InFlight()))
        await asyncio.sleep(0)
        job = batcher.on_inference_thread(lambda: list(gate.sizes))
        third = asyncio.ensure_future(batcher.predict(image(2), InFlight()))
        await asyncio.sleep(0)
        gate.open.set()
        await asyncio.gather(first, second, third)
        assert job.result(PATIENCE_SECONDS) == [1]  # not within a batch, and before the next one

    play(scenario())


def test_sizes_of_batches_are_told(slot, gate):
    told: list[int] = []
    batcher = MicroBatcher(slot, max_queue=10, on_batch=told.append)
    batcher.start()
    play(batcher.predict(image(1), InFlight()))
    batcher.stop()
    assert told == [1]


def test_stopping_finishes_what_waits(slot, gate):
    batcher = MicroBatcher(slot, max_queue=10)
    batcher.start()

    async def scenario() -> list[float]:
        first = await hold(batcher, gate)
        second = asyncio.ensure_future(batcher.predict(image(5), InFlight()))
        await asyncio.sleep(0)
        stopping = asyncio.get_running_loop().run_in_executor(None, batcher.stop)
        gate.open.set()
        await stopping
        return [float((await each).probabilities[0]) for each in (first, second)]

    assert play(scenario()) == [0, 5]


def test_a_closed_loop_does_not_end_the_inference_thread(slot, gate):
    batcher = MicroBatcher(slot, max_queue=10)
    batcher.start()

    async def go_away() -> None:
        (await hold(batcher, gate)).cancel()

    play(go_away())
    gate.open.set()
    assert play(batcher.predict(image(2), InFlight())).probabilities[0] == 2
    batcher.stop()


def test_the_naive_twin_gives_the_same_answers(batcher):
    """Many at once through batches of any size against one at a time."""

    async def scenario() -> list[float]:
        answers = await asyncio.gather(*(batcher.predict(image(i), InFlight()) for i in range(90)))
        return [float(each.probabilities[0]) for each in answers]

    assert play(scenario()) == [play(batcher.predict(image(i), InFlight())).probabilities[0] for i in range(90)]


@pytest.mark.parametrize("n_rows", [0, 1, 2, 4, 9])
def test_a_batch_with_another_number_of_results_fails_alone(batcher, gate, monkeypatch, n_rows):
    """Else an image would get its neighbour's answer, or the last ones none."""
    right = gate.predict

    async def scenario() -> list[object]:
        first = await hold(batcher, gate)
        others = [asyncio.ensure_future(batcher.predict(image(i), InFlight())) for i in range(1, 4)]
        await asyncio.sleep(0)
        monkeypatch.setattr(gate, "predict", lambda images: np.zeros((n_rows, 2), np.float32))
        gate.open.set()
        spoilt = await asyncio.gather(first, *others, return_exceptions=True)
        monkeypatch.setattr(gate, "predict", right)
        return [*spoilt, await batcher.predict(image(7), InFlight())]

    first, *others, later = play(scenario())
    assert first.probabilities.tolist() == [0, 0]
    for each in others:
        assert isinstance(each, EngineError)
        assert str(each) == f"Expected a result for each of 3 images, got {n_rows}."
    assert later.probabilities.tolist() == [7, 7]
