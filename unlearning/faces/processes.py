"""Many pictures at once, in processes: decoding small ones holds the lock of the interpreter, which threads share."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

Result = TypeVar("Result")

_AHEAD = 3  # calls handed out, a process
_IDLE_SECONDS = 10  # then a process ends by itself, should this one be killed before it could end it


def map_calls(function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], *, workers: int) -> Iterator[Result]:
    """Call `function` with one of `calls` after another, several at a time.

    Args:
        function: of a module, so that another process finds it.
        calls: its arguments.
        workers: Processes.

    Yields:
        What `function` returned, in order. The first error in order is raised, and what has not begun is dropped.
    """
    from joblib.externals.loky import ProcessPoolExecutor  # most folders are packed without

    waiting: deque[Future[Result]] = deque()
    with ProcessPoolExecutor(workers, timeout=_IDLE_SECONDS) as pool:
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
