"""Which process a row of the database speaks of, and whether it is known to have ended.

Tested in `tests/service/erasure/test_lease.py`.
"""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def this_host() -> str:
    """This machine as far as process numbers mean something: its name and its process namespace."""
    try:
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def mark_of(pid: int) -> str | None:
    """What tells a running process from all others: the kernel's boot, the process namespace, the start in ticks since.

    Neither a number that another process got later nor one of another container or machine gives the same. None if
    there is no such process, a zombie has ended too, or if this system does not say. (`psutil` tells a start in seconds
    of the wall clock, which changes when the clock is set.)
    """
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # a /proc of another namespace
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
        state, *fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()
    except OSError:
        return None
    n_threads, started = int(fields[16]), int(fields[18])
    if state in (b"Z", b"X") and n_threads <= 1:  # beside a zombie main thread others may still run
        return f"{boot} {namespace} ended"
    return f"{boot} {namespace} {started}"


def has_ended(pid: int, mark: str | None) -> bool:
    """Whether the process that had this number and mark is known to have ended.

    False if it runs, and also if it cannot be seen from here: on another machine or in another container, before this
    boot of the machine, or on a system without marks.
    """
    ours = mark_of(os.getpid())
    if mark is None or ours is None or mark.rpartition(" ")[0] != ours.rpartition(" ")[0]:
        return False
    try:
        os.kill(pid, 0)  # unlike /proc it also tells of processes that we may not look at
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    found = mark_of(pid)
    return found is not None and found != mark
