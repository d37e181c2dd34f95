"""Calls in a pool, submitted only a few ahead of the results taken, so that neither calls nor results pile up.

Tested in `tests/unlearning/faces/test_packing.py`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

Result = TypeVar("Result")

_AHEAD = 3  # calls handed out, a worker


def map_ahead(
    pool: Executor, function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], *, workers: int
) -> Iterator[Result]:
    """Call `function` with each of `calls` in a pool of workers.

    Yields:
        What `function` returned, in order. The first error in order is raised; calls that have not begun are dropped.
    """
    waiting: deque[Future[Result]] = deque()
    try:
        for call in calls:
            waiting.append(pool.submit(function, *call))
            if len(waiting) == _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
