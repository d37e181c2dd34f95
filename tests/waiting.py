"""Waiting with an end: a test that waits for another thread or process fails with what it waited for, and never hangs.

The patience is long, because a loaded machine may take long; nothing is proved by how long something took.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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
