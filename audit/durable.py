"""Small files that are whole or absent, whenever a process is killed, and that are overwritten when destroyed.

Contents go to a temporary file of a name of its own, are flushed to the disk, and appear under their final name in one
step. What a file held before is kept by a second name until it is overwritten with zeros. (Overwriting reaches what the
file system keeps in place; copy-on-write file systems, solid-state disks and backups keep copies beyond its reach.)
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def lock(path: Path, *, exclusive: bool) -> Iterator[None]:
    """Waits for the lock of this name; held by the kernel for the open file, hence gone with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


def place(path: Path, data: bytes, *, is_whole: Callable[[bytes], bool]) -> bool:
    """Write the file unless a whole one is there; whether it was written.

    Several processes may place one file at once: the first stays.
    """
    temporary = _write_temporary(path.parent, data)
    try:
        os.link(temporary, path)
    except FileExistsError:
        if is_whole(path.read_bytes()):
            destroy(temporary)
            return False
        _move_over(temporary, path)
    else:
        temporary.unlink()
    _flush_folder(path.parent)
    return True


def overwrite(path: Path, data: bytes) -> None:
    """Write the file, and destroy what it held before."""
    _move_over(_write_temporary(path.parent, data), path)


def destroy(path: Path) -> None:
    """Overwrite with zeros, flush, unlink; a file that is gone is no error.

    One with a second name is only unlinked: a process killed in `place` leaves such a temporary file beside its result.
    """
    with suppress(FileNotFoundError):
        with path.open("r+b") as file:
            status = os.fstat(file.fileno())
            if status.st_nlink == 1:
                file.write(bytes(status.st_size))
                file.flush()
                os.fsync(file.fileno())
        path.unlink()


def _write_temporary(folder: Path, data: bytes) -> Path:
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=folder)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)


def _move_over(temporary: Path, path: Path) -> None:
    old = temporary.with_suffix(".old")
    with suppress(FileNotFoundError):
        os.link(path, old)
    temporary.replace(path)
    _flush_folder(path.parent)
    destroy(old)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
