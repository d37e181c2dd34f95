"""The shadow of a serving process: the staged engine computes some of the batches that were just answered once more.

It runs on the inference thread after the answers of a batch were handed to the event loop, so that nothing it does can
change, hold back or lose one of them. The next batch waits until it is done. What is kept are counts; see
`service.models.shadowing`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import structlog
from numpy.typing import NDArray

from service.models.shadowing import Figures

if TYPE_CHECKING:
    from service.inference.engine import Engine
    from service.serving.batching import Prediction

log = structlog.get_logger()


class Shadow:
    """A staged engine beside the one that answers.

    Args:
        engine: the staged one.
        run_id: of the comparison that it takes part in.
        share: of the batches that it computes too. If it is slower than the engine that answers, it gets fewer: so many
            that it takes no larger share of the computing time.
    """

    def __init__(
        self,
        engine: Engine,
        run_id: str,
        share: float,
        rng: random.Random,
        *,
        steady: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.engine = engine
        self.run_id = run_id
        self._share = share
        self._rng = rng
        self._steady = steady
        self._owed_seconds = 0.0  # taken beyond its share
        self._counts: dict[int, Figures] = {}
        self._places: dict[str, int] = {name: place for place, name in enumerate(engine.classes)}

    @property
    def counts(self) -> dict[int, Figures]:
        """What was counted so far, by place of the class that was answered; from any thread."""
        return self._counts.copy()

    def see(self, answered: Sequence[tuple[NDArray[np.uint8], Prediction]]) -> None:
        """On the inference thread: a batch was answered. Never raises."""
        try:
            self._see(answered)
        except Exception as error:
            log.error("shadow.disturbed", error=type(error).__name__)

    def _see(self, answered: Sequence[tuple[NDArray[np.uint8], Prediction]]) -> None:
        if not answered:
            return
        first = answered[0][1]
        before = first.engine
        if before.generation >= self.engine.generation or before.input_shape != self.engine.input_shape:
            return  # swapped meanwhile, or the images do not fit
        if self._owed_seconds > 0:
            self._owed_seconds -= self._share * first.computed_seconds
            return
        if self._rng.random() >= self._share:
            return
        began = self._steady()
        try:
            after = self.engine.predict(np.stack([image for image, _ in answered]))
            if len(after) != len(answered):
                raise ValueError("another number of results than images")
        except Exception as error:
            log.warning("shadow.failed", error=type(error).__name__, generation=self.engine.generation)
            for _, prediction in answered:
                self._count(prediction.best, Figures(images=1, failed=1))
            return
        finally:
            self._owed_seconds = max(0.0, self._steady() - began - first.computed_seconds)
        best = after.argmax(1)
        for (_, prediction), row, now_best in zip(answered, after, best, strict=True):
            label = before.classes[prediction.best]
            place = self._places.get(label)
            now = float(row[place]) if place is not None else 0.0
            moved = abs(now - float(prediction.probabilities[prediction.best]))
            is_other = self.engine.classes[now_best] != label
            self._count(prediction.best, Figures.of(label_changed=is_other, moved=moved))

    def _count(self, place: int, figures: Figures) -> None:
        self._counts[place] = self._counts.get(place, Figures()) + figures
