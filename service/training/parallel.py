"""How many training processes run side by side, and why so many; loads no torch."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import joblib
import psutil

from service.settings import Settings

NEED_BYTES = 1 << 30
"""Memory that one more training process is given: with a ResNet-18 and batches of 64 images it takes .5 GiB, at most
1.0 for a moment; the small networks take .35."""
_LIMITS = (  # of a container: limit, use, statistics, and what the kernel gives back when asked to
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


@dataclass(frozen=True)
class Jobs:
    """Training processes, and in a sentence why so many."""

    n: int
    why: str
    short_of_memory: bool = False


def jobs_of(settings: Settings, cgroup: Path = Path("/sys/fs/cgroup")) -> Jobs:
    """As many as set, or as cores and memory allow: affinity, and a container's quota and limit, included."""
    if settings.jobs:
        return Jobs(settings.jobs, f"EXPUNGE_JOBS is {settings.jobs}.")
    cores, free = joblib.cpu_count(), memory_left(cgroup)
    fitting = max(1, free // NEED_BYTES)
    gib = f"{free / (1 << 30):.1f} GiB of memory are left"
    if fitting < cores:
        return Jobs(fitting, f"{gib}, 1 for each process, though {cores} cores are there.", short_of_memory=True)
    return Jobs(cores, f"As many as cores that this process may use; {gib}.")


def memory_left(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that may still be taken, of the machine and of the container."""
    left = psutil.virtual_memory().available
    for limit, use, statistics, name in _LIMITS:
        with suppress(OSError, ValueError, KeyError):  # no such file, or "max": no limit
            most, taken = (int((cgroup / file).read_text()) for file in (limit, use))
            found = dict(line.split() for line in (cgroup / statistics).read_text().splitlines())
            left = min(left, most - taken + int(found[name]))
    return max(0, left)
