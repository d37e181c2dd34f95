"""Returning freed memory to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Make the C library return freed memory; glibc keeps up to twice the largest array freed so far.

    Python's own objects use other memory, so what glibc keeps adds to them.
    """
    with suppress(AttributeError, OSError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)
