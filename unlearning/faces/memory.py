"""Memory that is free in the C library and not yet in the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_back_memory() -> None:
    """Have the C library return what was freed; glibc keeps up to twice the largest array freed so far to itself.

    Python's own objects come from elsewhere, so what it keeps would stand beside them.
    """
    with suppress(AttributeError, OSError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)
