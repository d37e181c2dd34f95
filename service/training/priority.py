"""How training stands back behind what is served from the same machine; loads no torch."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from service.settings import Settings
from service.store.serving_mark import is_served


def yields(settings: Settings) -> bool:
    """Whether training takes only what nothing else wants of the processor."""
    priority = settings.training_priority
    return priority == "idle" or (priority == "auto" and is_served(settings.serving_mark_path))


def yield_processor() -> None:
    """Let serving go first where the kernel weighs whole sessions: `nice` acts only within one."""
    autogroup = Path("/proc/self/autogroup")
    if os.getsid(0) == os.getpid() and autogroup.exists():  # only a session of our own
        with suppress(OSError):
            autogroup.write_text("19")


def go_last(pid: int) -> None:
    """A process computes only while nobody else would, on Linux."""
    if hasattr(os, "SCHED_IDLE"):
        with suppress(OSError):
            os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
