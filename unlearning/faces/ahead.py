"""Calls handed out a few ahead of what is asked for, so that neither those that wait nor what came back piles up."""

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
    """Call `function` with one of `calls` after another in a pool of so many workers.

    Yields:
        What `function` returned, in order. The first error in order is raised, and what has not begun is dropped.
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
