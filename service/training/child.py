"""A process that trains for another one: it ends with that, and stands back behind predictions. Loads no torch."""

from __future__ import annotations

import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from service.settings import Settings
from service.store.felt import Board
from service.training.governor import TICK_SECONDS, go_last, weigh_session, yields
from service.training.pausing import pauser

_LOOK_SECONDS = 0.5

_stands_back = threading.Event()  # what this process does may be paused


def in_child(packed: bytes, parent: int, settings: Settings, hurried: bool) -> Any:
    """What a packed function gives for its packed arguments.

    Where it stands back it runs in a thread of its own, the last in the line for the processor, which no thread may
    leave again; so each call begins anew, and one that begins near a deadline, or where nothing is left, does not.

    Args:
        hurried: it does not, either: it began once before and came to nothing.
    """
    board = _prepare_process(parent, settings.training_board_path)
    _stands_back.clear()
    if yields(settings):  # asked for each call: serving may have begun since the last one
        _stands_back.set()
    last = _stands_back.is_set() and not (hurried or board.is_in_hurry(time.monotonic()))
    weigh_session(least=last)
    if not last:
        return _unpacked(packed)
    with ThreadPoolExecutor(max_workers=1, initializer=go_last) as thread:
        return thread.submit(_unpacked, packed).result()


def _unpacked(packed: bytes) -> Any:
    function, arguments = pickle.loads(packed)  # noqa: S301
    return function(*arguments)


@lru_cache(maxsize=1)
def _prepare_process(parent: int, path: Path) -> Board:
    """Once a process: a session of its own, pauses, and an end when the process that asked for it is gone.

    Where the kernel weighs whole sessions, one with the worker would take the worker down to the child's priority, and
    a worker that waits for the processor while it holds the database's lock stops the serving processes' heartbeats.
    """
    with suppress(PermissionError):  # it leads one already
        os.setsid()
    board, pause = Board(path), pauser()

    def watch() -> None:
        looked_at = 0.0
        while True:
            now = time.monotonic()
            if now - looked_at > _LOOK_SECONDS:
                looked_at = now
                if os.getppid() != parent:
                    os._exit(1)
            seconds = board.period.pause_left(now) if _stands_back.is_set() else 0.0
            if seconds and pause is not None:
                pause(seconds)
            else:
                time.sleep(TICK_SECONDS)

    threading.Thread(target=watch, daemon=True).start()
    return board
