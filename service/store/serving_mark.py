"""Whether predictions are served from this home on this machine: training then takes only what serving leaves.

Each serving process holds a shared lock on a file while it serves. The system lets go of it however the process ends.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

_TRIES = 5  # whoever else asks at the same moment has the lock for some microseconds


class ServingMark:
    """One process's part of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def hold(self) -> None:
        """Let `is_served` be true from now on."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """Hold it no longer; nothing happens if it was not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def is_served(path: Path) -> bool:
    """Whether any process holds the mark."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        for _ in range(_TRIES):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.001)
            else:
                return False
        return True
    finally:
        os.close(descriptor)
