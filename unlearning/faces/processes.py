"""Parallel calls in processes, for small images, whose decoding holds the interpreter's lock.

Tested in `tests/unlearning/faces/test_packing.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from unlearning.faces.ahead import map_ahead

Result = TypeVar("Result")

_IDLE_SECONDS = 10  # then a process ends by itself, should this one be killed before it could end it


def map_calls(function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], *, workers: int) -> Iterator[Result]:
    """Call `function` with each of `calls` in several processes.

    Args:
        function: at the top level of a module, so that another process can import it.
        calls: its arguments.
        workers: Processes.

    Yields:
        As `map_ahead`.
    """
    from joblib.externals.loky import ProcessPoolExecutor  # most folders are packed without

    with ProcessPoolExecutor(workers, timeout=_IDLE_SECONDS) as pool:
        yield from map_ahead(pool, function, calls, workers=workers)
