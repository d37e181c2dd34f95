"""Looking at something again and again in a thread while a block runs."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from typing import Self


class Sampler(ABC):
    """`with sampler: …` looks every so many seconds until the block ends."""

    def __init__(self, every_seconds: float) -> None:
        self._every_seconds, self._stop = every_seconds, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._every_seconds):
            self.look()

    @abstractmethod
    def look(self) -> None:
        """Look once; what cannot be seen just now, as a process that has ended, is passed over."""
