"""Observations taken down at once and counted a moment later.

`Histogram.observe` takes locks and packs two numbers into a mapped file, at every one of the four or five observations
of a prediction. Here the hot path appends a number to a queue; whoever calls `count` moves what gathered into the
histogram, many observations for little more than one.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np
from prometheus_client import Counter, Histogram


class TalliedHistogram(Histogram):
    """A histogram that can take many observations at once."""

    def observe_all(self, values: list[float]) -> None:
        """The same as `observe` for each value, `(n,)`, NaN included: it is in no bucket."""
        self._raise_if_not_observable()
        observed = np.asarray(values, np.float64)
        self._sum.inc(float(observed.sum()))
        places = np.searchsorted(self._upper_bounds, observed[~np.isnan(observed)], side="left")  # first bound ≥ value
        for place, n in zip(*np.unique(places, return_counts=True), strict=True):
            self._buckets[place].inc(int(n))


class Tally:
    """One series' observations that wait to be counted, and the counter that grows by one with each.

    Attributes:
        note: takes one observation down; from any thread.
    """

    def __init__(self, histogram: TalliedHistogram, counter: Counter | None = None) -> None:
        self._waiting: deque[float] = deque()
        self._histogram = histogram
        self._counter = counter
        self.note: Any = self._waiting.append  # the method itself, without a call of ours around it

    def count(self) -> None:
        """Count what was noted before now; from any thread."""
        values: list[float] = []
        try:
            for _ in range(len(self._waiting)):
                values.append(self._waiting.popleft())
        except IndexError:  # somebody else counts at the same time
            pass
        if values:
            self._histogram.observe_all(values)
            if self._counter is not None:
                self._counter.inc(len(values))
