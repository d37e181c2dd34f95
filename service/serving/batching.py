"""Adaptive batching: one inference thread a process computes whatever has gathered, without a timer.

The next batch gathers while one is computed, so batches grow with the load. A batch starts when it is full, or when a
few turns of the event loop brought no further image. Those turns let in clients that were just answered and ask again
at once; otherwise they would form a second group that takes turns with the first, both in batches of half the size. The
wait covers only work that the event loop already has, so nothing is lost where a process has one core: two threads
sharing it would compute no sooner. A lone request waits for these turns alone, 15 µs each.

Images come decoded, so a bad one fails before it gets here and spoils no batch. The images of one call stay together
and are answered by one engine. If the engine gives another number of results than there were images, that batch fails
as a whole, and no other.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from service.errors import EngineError, TryLaterError
from service.inference.engine import Engine
from service.serving.slot import InFlight, ModelSlot
from unlearning.errors import staying

if TYPE_CHECKING:
    from service.serving.shadow import Shadow

MAX_BATCH = 32  # images; larger batches are no cheaper an image, and the first of them waits longer
QUIET_TURNS = 4  # between an answer and the same client's next image: one turn each to write, read, parse and decode


class InputChangedError(Exception):
    """The model that answers now takes images of another shape; decode again for it and resubmit."""


@dataclass(frozen=True)
class Prediction:
    """Answer to one image.

    Attributes:
        probabilities: float32 `(n_classes,)`, in the order of the engine's classes.
        best: place of the largest.
        engine: what computed it.
        batch_size: images computed together.
        waited_seconds: from the call to the beginning of its batch.
        computed_seconds: of the whole batch.
    """

    probabilities: NDArray[np.float32]
    best: int
    engine: Engine
    batch_size: int
    waited_seconds: float = 0.0
    computed_seconds: float = 0.0


@dataclass(eq=False)
class _Waiting:
    """Images of one call in the queue, and what became of them."""

    images: Sequence[NDArray[np.uint8]]
    request: InFlight
    answer: asyncio.Future[list[Prediction]]
    since: float
    outcome: list[Prediction] | Exception | None = None

    def answered(self) -> Iterable[tuple[NDArray[np.uint8], Prediction]]:
        """Its images with their answers; none if it got none."""
        return zip(self.images, self.outcome, strict=True) if isinstance(self.outcome, list) else ()


Job = Callable[[], object]


class MicroBatcher:
    """The inference thread, the images that wait for it, and jobs that have to run on it.

    Args:
        slot: gives the engine, once a batch.
        max_queue: calls that may wait; more are refused.
        max_batch: images computed together at most, and images a call may have.
        on_batch: called with the size of each batch, on the inference thread.

    Attributes:
        shadow: sees each batch once its answers were handed out; none while nothing is compared.
    """

    def __init__(
        self,
        slot: ModelSlot,
        *,
        max_queue: int,
        max_batch: int = MAX_BATCH,
        on_batch: Callable[[int], object] = lambda _: None,
    ) -> None:
        self.shadow: Shadow | None = None
        self._slot = slot
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._on_batch = on_batch
        self._gathered: deque[_Waiting] = deque()
        self._is_computing = False  # a batch is on the inference thread, or goes there or back
        self._looks_in: asyncio.AbstractEventLoop | None = None  # where the next turn looks whether to start
        self._n_quiet = 0  # turns since the last image
        self._queue: queue.SimpleQueue[list[_Waiting] | Job | None] = queue.SimpleQueue()  # None ends the thread
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        """Start the inference thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what waits, then end the thread."""
        while batch := self._take():
            self._queue.put(batch)
        self._queue.put(None)
        self._thread.join()

    async def predict(self, image: NDArray[np.uint8], request: InFlight) -> Prediction:
        """Answer for an image `(height, width, channels)`, uint8, on behalf of a request.

        Raises:
            TryLaterError: the queue is full, or this process does not answer now.
            InputChangedError: the model does not take images of this shape any more.
        """
        (prediction,) = await self.predict_together([image], request)
        return prediction

    async def predict_together(self, images: Sequence[NDArray[np.uint8]], request: InFlight) -> list[Prediction]:
        """Answers for at most `max_batch` images of one request, in their order, all by one engine.

        Raises:
            TryLaterError, InputChangedError: as `predict`; the latter if any of the images does not fit.
        """
        if len(self._gathered) >= self._max_queue:
            raise TryLaterError(f"Expected fewer than {self._max_queue} images to wait here; send this one again.")
        loop = asyncio.get_running_loop()
        answer = loop.create_future()
        self._gathered.append(_Waiting(images, request, answer, time.perf_counter()))
        self._look(loop)
        return await answer

    def on_inference_thread(self, job: Job) -> Future[Any]:
        """Run something between two batches, for example a warm-up."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                with staying():
                    done.set_result(job())
            except Exception as error:
                done.set_exception(error)

        self._queue.put(run)
        return done

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the event loop, when something changed: look from the next turn on whether a batch is to start."""
        self._n_quiet = 0
        if self._looks_in is not loop and not self._is_computing:
            self._looks_in = loop
            loop.call_soon(self._turn, loop)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """One turn of the event loop went by."""
        n_images = sum(len(waiting.images) for waiting in self._gathered)
        if n_images < self._max_batch and self._n_quiet < QUIET_TURNS:
            self._n_quiet += 1
            loop.call_soon(self._turn, loop)
            return
        self._looks_in = None
        if batch := self._take():
            self._is_computing = True
            self._queue.put(batch)

    def _take(self) -> list[_Waiting]:
        """The next batch, out of what gathered."""
        batch: list[_Waiting] = []
        n_images = 0
        while self._gathered and (not batch or n_images + len(self._gathered[0].images) <= self._max_batch):
            waiting = self._gathered.popleft()
            if not waiting.answer.cancelled():
                batch.append(waiting)
                n_images += len(waiting.images)
        return batch

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, list):
                self._answer(item)
            else:
                item()

    def _answer(self, batch: list[_Waiting]) -> None:
        try:
            with staying():
                self._predict(batch)
        except Exception as error:
            for waiting in batch:
                waiting.outcome = error
        following = self._take() if len(self._gathered) >= self._max_batch else []
        if following:  # full already: no need to wait until the event loop has time
            self._queue.put(following)  # behind jobs that wait
        loop = batch[0].answer.get_loop()
        try:
            loop.call_soon_threadsafe(self._deliver, loop, batch, bool(following))  # one wake-up for all
        except RuntimeError:  # the loop was closed: nobody waits any more, but for those of a later one
            self._is_computing = bool(following)
            for later in {waiting.answer.get_loop() for waiting in tuple(self._gathered)} - {loop}:
                with suppress(RuntimeError):
                    later.call_soon_threadsafe(self._look, later)
        if (shadow := self.shadow) is not None:
            shadow.see([answered for waiting in batch for answered in waiting.answered()])

    def _deliver(self, loop: asyncio.AbstractEventLoop, batch: list[_Waiting], is_computing: bool) -> None:
        """In the event loop: resolve what nobody cancelled, then look for the next batch, unless one is under way."""
        for waiting in batch:
            if waiting.answer.done():
                continue
            if isinstance(waiting.outcome, Exception):
                waiting.answer.set_exception(waiting.outcome)
            elif waiting.outcome is not None:
                waiting.answer.set_result(waiting.outcome)
        self._is_computing = is_computing
        if self._gathered:
            self._look(loop)

    def _predict(self, batch: list[_Waiting]) -> None:
        engine, began = self._slot.engine_for([waiting.request for waiting in batch]), time.perf_counter()
        fitting = []
        for waiting in batch:
            if all(image.shape == engine.input_shape for image in waiting.images):
                fitting.append(waiting)
            else:
                waiting.outcome = InputChangedError()
        if not fitting:
            return
        images = [image for waiting in fitting for image in waiting.images]
        self._on_batch(len(images))
        probabilities = engine.predict(np.stack(images))
        if len(probabilities) != len(images):
            raise EngineError(f"Expected a result for each of {len(images)} images, got {len(probabilities)}.")
        self._slot.wait_for_older(engine.generation)
        computed = time.perf_counter() - began
        rows = zip(probabilities, probabilities.argmax(1).tolist(), strict=True)
        for waiting in fitting:
            waited = began - waiting.since
            waiting.outcome = [
                Prediction(row, best, engine, len(images), waited, computed)
                for row, best in islice(rows, len(waiting.images))
            ]
