"""Destroying people's pictures: from the data folder, its table and every pack made from it.

The order makes a removal that was killed at any point finishable by the same call, and never lets a half-removed person
be trained on:

1. packs are destroyed, so that no ready-made copy is left to train on;
2. the people's image files are destroyed; from the first one on, the table names files that are missing, and every
   check and every pack of the folder refuses it;
3. the table is replaced by one without the people, and the old one destroyed: only now the folder is whole again.

Until step 3 the table still lists what is to be destroyed, so the same call finds it again.

To destroy a file is to overwrite it with zeros, have that on the disk, and unlink it. On a drive that remaps blocks or
a file system that copies on write, older blocks may outlive that; only encryption of the volume answers for those.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from unlearning.errors import FacesError
from unlearning.faces.dataset import METADATA, file_status, read_rows
from unlearning.faces.exclusion import removing
from unlearning.faces.packing import find_packs
from unlearning.faces.rows import Row
from unlearning.faces.writing import NEW_TABLE, stage_table, sync_folder

OLD_TABLE = ".metadata.csv.old"
_ZEROS = bytes(1 << 20)
_FLUSHES_AT_ONCE = 16

Reached = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Removal:
    """What one call destroyed; a call that finishes a killed one counts only its own part.

    Attributes:
        n_images: Lines taken out of the table.
        n_bytes: Bytes of image files overwritten.
        n_packed: Packs destroyed.
    """

    n_images: int
    n_bytes: int
    n_packed: int


def remove_subjects(folder: Path, user_ids: Collection[str], *, reached: Reached = lambda point: None) -> Removal:
    """Destroy all pictures of some people, and every packed copy of the folder.

    Can be called again: after a kill it finishes, after success it does nothing but drop packs. It waits for packs that
    are being made, not for those who read one: they see zeros, and `Faces.is_intact` tells them.

    Args:
        folder: The data folder. Its table must be readable; the rules between rows need not hold.
        user_ids: The people. Unknown ones are no error.
        reached: Called with the name of each point passed, for logs and for tests that kill the process there.

    Raises:
        FacesError: no readable table, or one of the people's files is not a plain file inside the folder.
    """
    if isinstance(user_ids, str):
        raise FacesError("Expected a collection of user ids, got a string; pass [user_id] for one person.")
    with removing(folder):
        _sweep(folder, reached)
        rows = read_rows(folder)
        leaving = [row for row in rows if row.user_id in user_ids]
        n_packed = _destroy_packs(folder, reached)
        n_bytes = _destroy_images(folder, leaving, reached)
        if leaving:
            _replace_table(folder, (row for row in rows if row.user_id not in user_ids), reached)
    return Removal(n_images=len(leaving), n_bytes=n_bytes, n_packed=n_packed)


def destroy_file(path: Path, *, reached: Reached = lambda point: None) -> int:
    """Overwrite a plain file with zeros, have that on the disk, and unlink it.

    Returns:
        Its size in bytes.
    """
    n_bytes = _overwrite(path)
    reached("overwritten")
    path.unlink()
    reached("unlinked")
    return n_bytes


def _overwrite(path: Path) -> int:
    """Replace a plain file's bytes by zeros on the disk; gives their number."""
    # Never through a link, and never waiting on a pipe that stands where a file should.
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FacesError(f"Expected a plain file to destroy, got something else: {path.name}.")
        for start in range(0, status.st_size, len(_ZEROS)):
            file.write(_ZEROS[: status.st_size - start])
        os.fsync(descriptor)
    return status.st_size


def _sweep(folder: Path, reached: Reached) -> None:
    """Finish what a killed call left of tables: both temporary ones hold people's ids."""
    new, old = folder / NEW_TABLE, folder / OLD_TABLE
    if new.exists():
        destroy_file(new, reached=reached)
    if old.exists():
        if (folder / METADATA).exists() and old.samefile(folder / METADATA):
            old.unlink()  # killed between the link and the rename: this is the table itself, under a second name
        else:
            destroy_file(old, reached=reached)
    sync_folder(folder)


def _destroy_packs(folder: Path, reached: Reached) -> int:
    """Destroy every pack of the folder; returns how many."""
    n_packed = 0
    for pack in find_packs(folder):
        for path in sorted(pack.iterdir()):
            destroy_file(path, reached=reached)
        pack.rmdir()
        sync_folder(pack.parent)
        n_packed += 1
        reached("pack destroyed")
    return n_packed


def _destroy_images(folder: Path, rows: list[Row], reached: Reached) -> int:
    """Destroy the rows' files and the folders they leave empty (their names may be telling); returns their bytes.

    All are zeros on the disk before the first is unlinked. Many wait for the disk at once, since it answers many
    flushes in the time of one; and each folder is flushed once.
    """
    there = [row for row in rows if (folder / row.file_name).exists() or (folder / row.file_name).is_symlink()]
    for row in there:
        file_status(folder, row)
    n_bytes = 0
    with ThreadPoolExecutor(_FLUSHES_AT_ONCE, thread_name_prefix="destroy") as pool:
        for size in pool.map(lambda row: _overwrite(folder / row.file_name), there):
            n_bytes += size
            reached("overwritten")
    for row in there:
        (folder / row.file_name).unlink()
        reached("image destroyed")
    touched = set()
    for emptied in {(folder / row.file_name).parent for row in rows}:
        parent = emptied
        while parent != folder and not (parent.exists() and any(parent.iterdir())):
            if parent.exists():
                parent.rmdir()
                reached("folder removed")
            parent = parent.parent
        touched.add(parent)
    for parent in sorted(touched):
        if parent.exists():  # one that was emptied after it was noted is flushed with its parent
            sync_folder(parent)
    return n_bytes


def _replace_table(folder: Path, rows: Iterable[Row], reached: Reached) -> None:
    """Put a table of `rows` in place and destroy the old one; it keeps a name until then, so no kill can lose it."""
    table, old = folder / METADATA, folder / OLD_TABLE
    stage_table(folder, rows)
    reached("new table written")
    os.link(table, old)
    sync_folder(folder)
    reached("old table linked")
    os.replace(folder / NEW_TABLE, table)
    sync_folder(folder)
    reached("table replaced")
    destroy_file(old, reached=reached)
    sync_folder(folder)
