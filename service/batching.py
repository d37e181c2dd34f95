"""Batching while busy: one inference thread a process takes what waits and never waits for more.

While a batch is computed the next one gathers by itself, so batches grow with the load and a lone request is answered
at once. Images come decoded: a bad one has failed before it got here and spoils no batch.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
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
    """

    probabilities: NDArray[np.float32]
    best: int
    engine: Engine
    batch_size: int


@dataclass(eq=False)
class _Waiting:
    """An image in the queue, and what became of it."""

    image: NDArray[np.uint8]
    passage: Passage
    answer: asyncio.Future[Prediction]
    outcome: Prediction | Exception | None = None


Job = Callable[[], object]


class MicroBatcher:
    """The inference thread, its queue, and jobs that have to run on it.

    Args:
        slot: gives the engine, once a batch.
        max_queue: images that may wait; more are refused.
        max_batch: images computed together at most.
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
        if self._queue.qsize() >= self._max_queue:
            raise TryLaterError(f"Expected fewer than {self._max_queue} images to wait here; send this one again.")
        waiting = _Waiting(image, passage, asyncio.get_running_loop().create_future())
        self._queue.put(waiting)
        return await waiting.answer

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
        while True:
            item = self._queue.get()
            ended = item is None
            batch: list[_Waiting] = []
            while isinstance(item, _Waiting):
                batch.append(item)
                item = None
                if len(batch) < self._max_batch:
                    with suppress(queue.Empty):
                        item = self._queue.get_nowait()
                        ended = item is None
            if batch:
                self._answer(batch)
            if item is not None:
                item()
            if ended:
                return

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
        engine = self._slot.board([waiting.passage for waiting in batch])
        fitting = []
        for waiting in batch:
            if waiting.image.shape == engine.input_shape:
                fitting.append(waiting)
            else:
                waiting.outcome = InputChangedError()
        if not fitting:
            return
        self._on_batch(len(fitting))
        probabilities = engine.predict(np.stack([waiting.image for waiting in fitting]))
        self._slot.let_older_go_first(engine.generation)
        for waiting, row, best in zip(fitting, probabilities, probabilities.argmax(1).tolist(), strict=True):
            waiting.outcome = Prediction(row, best, engine, len(fitting))


def _deliver(batch: list[_Waiting]) -> None:
    """In the event loop: resolve what nobody cancelled."""
    for waiting in batch:
        if waiting.answer.done():
            continue
        if isinstance(waiting.outcome, Prediction):
            waiting.answer.set_result(waiting.outcome)
        elif waiting.outcome is not None:
            waiting.answer.set_exception(waiting.outcome)
