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
from io import FileIO
from pathlib import Path

_PIECE_BYTES = 1 << 20


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
    flush_folder(path.parent)
    return True


def overwrite(path: Path, data: bytes) -> None:
    """Write the file, and destroy what it held before."""
    _move_over(_write_temporary(path.parent, data), path)


def destroy(path: Path) -> None:
    """Overwrite with zeros, flush, unlink; a file that is gone is no error.

    One with a second name is only unlinked: a process killed in `place` leaves such a temporary file beside its result.
    """
    with suppress(FileNotFoundError):
        with path.open("r+b", buffering=0) as file:
            status = os.fstat(file.fileno())
            if status.st_nlink == 1:
                _write_zeros(file)
        path.unlink()


def zero(path: Path) -> None:
    """Replace a file's bytes by zeros on the disk; every other name it has shows zeros, too.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with path.open("r+b", buffering=0) as file:
        _write_zeros(file)


def flush_folder(folder: Path) -> None:
    """A rename or a removal is durable only once its folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
    flush_folder(path.parent)
    destroy(old)


def _write_zeros(file: FileIO) -> None:
    remaining = os.fstat(file.fileno()).st_size
    while remaining:
        remaining -= file.write(bytes(min(remaining, _PIECE_BYTES)))
    os.fsync(file.fileno())
