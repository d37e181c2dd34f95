"""Files that processes of one machine map together: a number in one is seen by all at once, and stays there.

Tested in `tests/service/store/test_felt.py`.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path


def map_file(path: Path, n_bytes: int) -> mmap.mmap:
    """The first bytes of a file, which is made if missing; zeros where nothing was written yet.

    Raises:
        OSError: the disk is full; it is said here, because writing to the mapping would be SIGBUS.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if os.fstat(descriptor).st_size < n_bytes:
            os.posix_fallocate(descriptor, 0, n_bytes)
        return mmap.mmap(descriptor, n_bytes)
    finally:
        os.close(descriptor)
