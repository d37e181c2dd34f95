"""Small files that are complete or absent whenever a process is killed, and the destruction of files.

Contents are written to a temporary file, flushed to the disk, and renamed to their final name in one step. A file's old
content keeps a second name until it is destroyed.

**Destroying** a file means to overwrite it with zeros, flush, remove its name, and flush the folder. It reaches only
what the file system keeps in place: copy-on-write file systems, drives that remap blocks, snapshots and backups keep
copies, against which only encryption of the volume helps.

**A killed process leaves** a temporary file (`.NAME.TOKEN.tmp`), old content (`.NAME.TOKEN.old`) or a folder of work in
progress (`PREFIX` and a token). A process holds a kernel lock on the files it uses, which ends with the process, so
`sweep` and `sweep_scratch` can distinguish files left behind from files in use.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedWriter, FileIO
from pathlib import Path

from unlearning.errors import FileError

Reached = Callable[[str], None]

_ZEROS = memoryview(bytes(1 << 20))
_FLUSHES_AT_ONCE = 16
_LEFT_BEHIND = re.compile(r"\.(?P<of>.+)\.[0-9a-f]{16}\.(tmp|old)", re.DOTALL)
_LOCK = "lock"


@contextmanager
def lock(path: Path, *, exclusive: bool) -> Iterator[None]:
    """Wait for the lock of this name. The kernel holds it for the open file, so it ends with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield


def place(path: Path, data: bytes, *, is_whole: Callable[[bytes], bool]) -> bool:
    """Write the file unless it exists; returns whether it was written.

    Several processes may place one file at once: the first one wins.
    """
    with _temporary(path, data, mode=0o600) as temporary:
        try:
            os.link(temporary, path)
        except FileExistsError:
            if is_whole(path.read_bytes()):
                return False
            _move_over(temporary, path, lambda point: None)
        else:
            temporary.unlink()
    flush_folder(path.parent)
    return True


def overwrite(path: Path, data: bytes, *, mode: int = 0o600, reached: Reached = lambda point: None) -> None:
    """Write the file, and destroy its old content.

    Args:
        path: The file, created if needed.
        data: Its new content.
        mode: Permissions of the new file, less the process's umask.
        reached: Called at `written` (beside the file), `linked` (the old content has a second name) and `replaced` (the
            second name is its only one).
    """
    with _temporary(path, data, mode=mode) as temporary:
        reached("written")
        _move_over(temporary, path, reached)


@contextmanager
def new_file(
    path: Path, *, mode: int = 0o600, reached: Reached = lambda point: None
) -> Iterator[BufferedWriter[FileIO]]:
    """A file to be written that gets its name once the block has ended and it is on the disk; else it is destroyed.

    Raises:
        FileExistsError: there is a file of the name.
    """
    if os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    temporary, raw = _new_temporary(path, mode)
    with BufferedWriter(raw, len(_ZEROS)) as file:
        try:
            yield file
            file.flush()
            os.fsync(raw.fileno())
            reached("written")
            temporary.rename(path)
            flush_folder(path.parent)
        finally:
            destroy(temporary)


def destroy(*paths: Path, keep_linked: bool = False, reached: Reached = lambda point: None) -> int:
    """Overwrite plain files with zeros, flush, remove them, flush their folders; a missing file is no error.

    All are zeros on the disk before the first is removed. Flushes run concurrently, which takes the time of one; each
    folder is flushed once. Links are never followed.

    A file may have several names (hard links), anywhere on its file system. Its content is destroyed: every other name
    shows zeros afterwards.

    Args:
        paths: The files.
        keep_linked: A file that has another name in the same folder only loses this one. This is the state of a
            temporary file beside its result if a process was killed between linking the one name and removing the
            other.
        reached: Called with `overwritten` and `unlinked` for each existing file.

    Returns:
        Bytes overwritten.

    Raises:
        FileError: one of them is not a plain file; none was removed.
        OSError: a file cannot be written or removed. All others are zeros; the call can be repeated.
    """
    n_bytes, there = 0, []
    for path, size in zip(paths, _zero_all(paths, keep_linked), strict=True):
        if size is not None:
            n_bytes += size
            there.append(path)
            reached("overwritten")
    for path in there:
        path.unlink(missing_ok=True)
        reached("unlinked")
    for folder in sorted({path.parent for path in there}):
        with suppress(FileNotFoundError):  # another process removed it, and flushes the one above
            flush_folder(folder)
    return n_bytes


def destroy_folder(folder: Path, *, reached: Reached = lambda point: None) -> int:
    """`destroy` every file below a folder, then remove it and its folders; a missing folder is no error.

    Returns:
        Bytes overwritten.

    Raises:
        FileError: not a folder but a link to one or a file, or something below it is not a plain file.
        OSError: as `destroy`, or another process wrote into the folder meanwhile; the call can be repeated.
    """
    try:
        status = os.lstat(folder)
    except FileNotFoundError:
        return 0
    if not stat.S_ISDIR(status.st_mode):
        raise FileError(
            f"Expected a folder to destroy, got {_kind(status)} (inode {status.st_ino}); find it with "
            f"`find -inum {status.st_ino}` and remove it."
        )
    paths, folders = [], []
    for name, below, names in os.walk(folder, topdown=False, onerror=_raise):
        links = [each for each in below if os.path.islink(os.path.join(name, each))]  # refused like any link
        paths += [Path(name, each) for each in (*names, *links)]
        folders.append(Path(name))
    n_bytes = destroy(*paths, reached=reached)
    for each in folders:
        with suppress(FileNotFoundError):
            each.rmdir()
    flush_folder(folder.parent)
    return n_bytes


def left_beside(path: Path) -> list[Path]:
    """Temporary files of a file, in use or not, with its new or old content."""
    return [each for each in _left_behind(path.parent) if _LEFT_BEHIND.sub(r"\g<of>", each.name) == path.name]


def left_behind(name: str) -> bool:
    """Whether a file of this name is a temporary one, in use or not."""
    return _LEFT_BEHIND.fullmatch(name) is not None


def sweep(folder: Path) -> int:
    """Destroy the temporary files in a folder that no living process uses; returns their number."""
    n_swept = 0
    for path in _left_behind(folder):
        # Until its rename a living process's .old has a .tmp beside it, which is locked.
        lock_of = path.with_suffix(".tmp") if path.suffix == ".old" else path
        with _unused(lock_of) as is_unused:
            if is_unused and os.path.lexists(path):
                destroy(path, keep_linked=True)
                n_swept += 1
    return n_swept


@contextmanager
def scratch(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder for work in progress, destroyed at the end; after a kill `sweep_scratch` finds it."""
    folder, held = _new_scratch(parent, prefix)
    with held:
        try:
            yield folder
        finally:
            destroy_folder(folder)


def sweep_scratch(parent: Path, prefix: str) -> int:
    """Destroy the folders of `scratch` that no living process uses; returns their number."""
    n_swept = 0
    for folder in sorted(path for path in parent.glob(f"{prefix}*") if path.is_dir() and not path.is_symlink()):
        with suppress(FileNotFoundError):  # another process was faster
            n_swept += _sweep_scratch(folder)
    return n_swept


def flush_folder(folder: Path) -> None:
    """Flush a folder, without which a rename or a removal in it is not durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _left_behind(folder: Path) -> list[Path]:
    """Temporary files of a folder, in use or not, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if _LEFT_BEHIND.fullmatch(path.name))
    except FileNotFoundError:
        return []


@contextmanager
def _temporary(path: Path, data: bytes, *, mode: int) -> Iterator[Path]:
    """A flushed file beside `path` with the content `data`; destroyed at the end if it still has its name."""
    temporary, file = _new_temporary(path, mode)
    with file:
        try:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
            yield temporary
        finally:
            destroy(temporary, keep_linked=True)


def _new_temporary(path: Path, mode: int) -> tuple[Path, FileIO]:
    """A new file and the lock on it."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        file = _locked(temporary, os.O_CREAT | os.O_EXCL, mode)
        if file is not None:
            return temporary, file


def _new_scratch(parent: Path, prefix: str) -> tuple[Path, FileIO]:
    """A new folder and the lock on it."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = parent / f"{prefix}{secrets.token_hex(8)}"
        folder.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # swept since the last line
            file = _locked(folder / _LOCK, os.O_CREAT, 0o600)
            if file is not None:
                return folder, file


def _sweep_scratch(folder: Path) -> bool:
    """Destroy a folder of `scratch` unless it is in use; returns whether it did."""
    held = folder / _LOCK
    if not os.listdir(folder):  # made by a process that takes the lock now, and if it is gone then, makes another
        with suppress(OSError):
            folder.rmdir()
        return False
    if not os.path.lexists(held):  # made before all else, so it is gone: somebody began to destroy the folder
        destroy_folder(folder)
        return True
    with _unused(held) as is_unused:
        if is_unused:
            destroy_folder(folder)
        return is_unused


def _locked(path: Path, flags: int, mode: int) -> FileIO | None:
    """A file opened and locked; None if `sweep` got the lock first and destroyed it."""
    file = FileIO(os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | flags, mode), "r+")
    fcntl.flock(file, fcntl.LOCK_EX)
    if os.fstat(file.fileno()).st_nlink:
        return file
    file.close()
    return None


@contextmanager
def _unused(path: Path) -> Iterator[bool]:
    """Whether no living process has the lock of a file, which this process holds meanwhile; true for a missing file."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_unused = True
    except BlockingIOError:
        is_unused = False
    try:
        yield is_unused
    finally:
        os.close(handle)


def _move_over(temporary: Path, path: Path, reached: Reached) -> None:
    old = temporary.with_suffix(".old")
    with suppress(FileNotFoundError):
        os.link(path, old)
    reached("linked")
    temporary.replace(path)
    flush_folder(path.parent)
    reached("replaced")
    destroy(old)


def _zero_all(paths: Sequence[Path], keep_linked: bool) -> Iterator[int | None]:
    """`_zero` of each path; after an error the others are overwritten nevertheless."""
    if len(paths) < 2:  # a thread takes longer to start than most such calls have to do
        yield from (_zero(path, keep_linked) for path in paths)
        return
    with ThreadPoolExecutor(_FLUSHES_AT_ONCE, thread_name_prefix="destroy") as pool:
        for future in [pool.submit(_zero, path, keep_linked) for path in paths]:
            yield future.result()


def _zero(path: Path, keep_linked: bool) -> int | None:
    """Overwrite a plain file with zeros and flush; returns the number of bytes, or None for a missing file."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            raise _not_plain(status)
        if keep_linked and status.st_nlink > 1 and _has_other_name(path, status):
            return 0
        # Never through a link, and never waiting on a pipe, which may have come to stand here since.
        handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with FileIO(handle, "w") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise _not_plain(status)
        remaining = status.st_size
        while remaining:
            remaining -= file.write(_ZEROS[:remaining])
        os.fsync(handle)
    return status.st_size


def _has_other_name(path: Path, status: os.stat_result) -> bool:
    with os.scandir(path.parent) as entries:
        return any(entry.inode() == status.st_ino and entry.name != path.name for entry in entries)


def _not_plain(status: os.stat_result) -> FileError:
    return FileError(
        f"Expected a plain file to destroy, got {_kind(status)} (inode {status.st_ino}); find it with "
        f"`find -inum {status.st_ino}` and remove it."
    )


def _kind(status: os.stat_result) -> str:
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
    return kinds.get(stat.S_IFMT(status.st_mode), "a device, a pipe or a socket")


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error
