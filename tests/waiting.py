"""Waiting with an end: a test that waits for another thread or process fails with what it waited for, and never hangs.

The patience is long, because a loaded machine may take long; nothing is proved by how long something took.
`tests/test_waiting.py` refuses the plain forms, which have no end.
"""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine
from typing import TypeVar

import pytest

T = TypeVar("T")

PATIENCE_SECONDS = 120.0


def wait_until(condition: Callable[[], T], what: str, *, seconds: float = PATIENCE_SECONDS) -> T:
    """Ask again and again until the answer is true, and give it; fail the test if that takes longer than `seconds`."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"Expected {what} within {seconds:.0f} s.")
        time.sleep(0.01)
    return found


def join(*threads: threading.Thread, seconds: float = PATIENCE_SECONDS) -> None:
    """Wait for threads to end; fail the test if one does not."""
    for thread in threads:
        thread.join(seconds)
        if thread.is_alive():
            pytest.fail(f"Expected thread {thread.name} to end within {seconds:.0f} s.")


def at_once(*functions: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    """Run functions at the same time, each in a thread that begins once all are there; raise what one raised."""
    together, errors = threading.Barrier(len(functions)), []

    def run(function: Callable[[], object]) -> None:
        try:
            together.wait(seconds)
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    join(*threads, seconds=seconds)
    if errors:
        raise errors[0]


def line_of(process: subprocess.Popen[str], start: str = "", *, seconds: float = PATIENCE_SECONDS) -> str:
    """The next line a child says that begins with `start`, "" if it ends before; kill it and fail if neither comes."""
    output, found = process.stdout, []
    assert output is not None

    def read() -> None:
        found.append(next((line for line in iter(output.readline, "") if line.startswith(start)), ""))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(seconds)
    if not found:
        process.kill()
        pytest.fail(f"Expected process {process.args} to say {start or 'something'!r} within {seconds:.0f} s.")
    return found[0]


def play(scenario: Coroutine[object, object, T], *, seconds: float = PATIENCE_SECONDS) -> T:
    """Run a scenario on an event loop of its own and give its result; fail the test if it does not end."""

    async def bounded() -> T:
        ending = asyncio.ensure_future(scenario)
        done, _ = await asyncio.wait([ending], timeout=seconds)
        if not done:
            ending.cancel()
            pytest.fail(f"Expected {scenario.__qualname__} to end within {seconds:.0f} s.")
        return ending.result()

    return asyncio.run(bounded())


async def until(condition: Callable[[], T], what: str, *, seconds: float = PATIENCE_SECONDS) -> T:
    """Like `wait_until`, while the event loop goes on."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"Expected {what} within {seconds:.0f} s.")
        await asyncio.sleep(0.001)
    return found
