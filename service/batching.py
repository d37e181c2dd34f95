"""Batching while busy: one inference thread a process takes what waits and never waits for more.

While a batch is computed the next one gathers by itself, so batches grow with the load and a lone request is answered
at once. Images come decoded: a bad one has failed before it got here and spoils no batch. The images of one call stay
together: one engine answers them all.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.engine import Engine
from service.errors import TryLaterError
from service.slot import ModelSlot, Passage

MAX_BATCH = 32  # images; larger batches are no cheaper an image, and the first of them waits longer


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
    passage: Passage
    answer: asyncio.Future[list[Prediction]]
    since: float
    outcome: list[Prediction] | Exception | None = None


Job = Callable[[], object]


class MicroBatcher:
    """The inference thread, its queue, and jobs that have to run on it.

    Args:
        slot: gives the engine, once a batch.
        max_queue: calls that may wait; more are refused.
        max_batch: images computed together at most, and images a call may have.
        on_batch: told the size of each batch, on the inference thread.
    """

    def __init__(
        self,
        slot: ModelSlot,
        *,
        max_queue: int,
        max_batch: int = MAX_BATCH,
        on_batch: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._slot = slot
        self._max_queue = max_queue
        self._max_batch = max_batch
        self._on_batch = on_batch
        self._queue: queue.SimpleQueue[_Waiting | Job | None] = queue.SimpleQueue()  # None ends the thread
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)

    def start(self) -> None:
        """Start the inference thread."""
        self._thread.start()

    def stop(self) -> None:
        """Finish what waits, then end the thread."""
        self._queue.put(None)
        self._thread.join()

    async def predict(self, image: NDArray[np.uint8], passage: Passage) -> Prediction:
        """Answer for an image `(height, width, channels)`, uint8, on behalf of a request.

        Raises:
            TryLaterError: the queue is full, or this process does not answer now.
            InputChangedError: the model does not take images of this shape any more.
        """
        (prediction,) = await self.predict_together([image], passage)
        return prediction

    async def predict_together(self, images: Sequence[NDArray[np.uint8]], passage: Passage) -> list[Prediction]:
        """Answers for at most `max_batch` images of one request, in their order, all by one engine.

        Raises:
            TryLaterError, InputChangedError: as `predict`; the latter if any of the images does not fit.
        """
        if self._queue.qsize() >= self._max_queue:
            raise TryLaterError(f"Expected fewer than {self._max_queue} images to wait here; send this one again.")
        answer = asyncio.get_running_loop().create_future()
        self._queue.put(_Waiting(images, passage, answer, time.perf_counter()))
        return await answer

    def on_inference_thread(self, job: Job) -> Future[Any]:
        """Run something between two batches, for example a warm-up."""
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(job())
            except Exception as error:
                done.set_exception(error)

        self._queue.put(run)
        return done

    def _run(self) -> None:
        item = self._queue.get()
        while item is not None:
            batch: list[_Waiting] = []
            n_images = 0
            while isinstance(item, _Waiting) and (not batch or n_images + len(item.images) <= self._max_batch):
                batch.append(item)
                n_images += len(item.images)
                try:
                    item = self._queue.get_nowait()
                except queue.Empty:
                    item = _NOTHING
                    break
            if batch:
                self._answer(batch)
            if item is not None and not isinstance(item, _Waiting):
                item()
                item = self._queue.get()

    def _answer(self, batch: list[_Waiting]) -> None:
        batch = [waiting for waiting in batch if not waiting.answer.cancelled()]
        if not batch:
            return
        try:
            self._predict(batch)
        except Exception as error:
            for waiting in batch:
                waiting.outcome = error
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            batch[0].answer.get_loop().call_soon_threadsafe(_deliver, batch)  # one wake-up for all

    def _predict(self, batch: list[_Waiting]) -> None:
        engine, began = self._slot.board([waiting.passage for waiting in batch]), time.perf_counter()
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
        self._slot.let_older_go_first(engine.generation)
        computed = time.perf_counter() - began
        rows = zip(probabilities, probabilities.argmax(1).tolist(), strict=True)
        for waiting in fitting:
            waited = began - waiting.since
            waiting.outcome = [
                Prediction(row, best, engine, len(images), waited, computed)
                for row, best in islice(rows, len(waiting.images))
            ]


def _nothing() -> None:
    """Takes the place of a job."""


_NOTHING: Job = _nothing


def _deliver(batch: list[_Waiting]) -> None:
    """In the event loop: resolve what nobody cancelled."""
    for waiting in batch:
        if waiting.answer.done():
            continue
        if isinstance(waiting.outcome, Exception):
            waiting.answer.set_exception(waiting.outcome)
        elif waiting.outcome is not None:
            waiting.answer.set_result(waiting.outcome)
