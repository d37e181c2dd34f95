"""Parallel calls in threads, for decoding and hashing, which release the interpreter's lock."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from unlearning.faces.ahead import map_ahead

Result = TypeVar("Result")

_SPAN = 32  # images a task: one a task costs more in hand-overs between threads than the image itself


def map_spans(function: Callable[[range], Result], n: int, *, workers: int | None = None) -> Iterator[Result]:
    """Call `function` on consecutive spans of 0 … n − 1 in several threads.

    Args:
        function: Takes a span of indices.
        n: How many indices.
        workers: Threads; None for one per core that this process may use.

    Yields:
        As `map_ahead`.
    """
    workers = workers or len(os.sched_getaffinity(0))
    spans = ((range(start, min(start + _SPAN, n)),) for start in range(0, n, _SPAN))
    with ThreadPoolExecutor(workers) as pool:
        yield from map_ahead(pool, function, spans, workers=workers)
