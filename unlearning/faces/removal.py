"""Destruction of subjects' images in the data folder, its table and every pack made from it.

The order of the steps allows the same call to finish a removal that was killed at any point, and prevents training on a
partly removed subject:

1. packs are destroyed, so that no copy is left to train on;
2. files that no row names and that equal one of the images are destroyed, because they cannot be recognised afterwards;
3. the subjects' image files are destroyed; from the first one on the table names missing files, and every check and
   every pack of the folder refuses it;
4. the table is replaced by one without the subjects, and the old one is destroyed. Now the folder is valid again.

Until step 4 the table lists what is to be destroyed, so the same call finds it again. `unlearning.files` defines what
destroying a file means.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unlearning import files
from unlearning.errors import FacesError
from unlearning.faces.dataset import METADATA, file_status, read_rows
from unlearning.faces.exclusion import removing
from unlearning.faces.packing import find_packs
from unlearning.faces.rows import Row, Rows
from unlearning.faces.unnamed import OLD_TABLE, find_copies
from unlearning.faces.writing import NEW_TABLE, stage_table
from unlearning.files import Reached


@dataclass(frozen=True, slots=True)
class Removal:
    """Counts of what one call destroyed; a call that finishes a killed one counts only its own part.

    Attributes:
        n_images: Lines removed from the table.
        n_bytes: Bytes of images and copies overwritten.
        n_packed: Packs destroyed.
        n_copies: Files destroyed that no row named and that were equal to an image byte for byte.
        n_unnamed: Files that no row names and that were left; their contents were not examined.
    """

    n_images: int
    n_bytes: int
    n_packed: int
    n_copies: int
    n_unnamed: int


@dataclass(frozen=True, slots=True)
class Held:
    """Files of one subject that exist in a data folder, by their names relative to it.

    Attributes:
        images: Those that the subject's rows name; a row whose file is missing has none.
        copies: Those that no row names and that are equal to one of `images` byte for byte.
    """

    images: tuple[str, ...]
    copies: tuple[str, ...]


def find_held(folder: Path, user_ids: Collection[str]) -> dict[str, Held]:
    """Files of some subjects in a data folder; changes nothing.

    Call this before `remove_subjects`: once an image is destroyed, its copies cannot be recognised.

    Args:
        folder: The data folder. Its table must be readable; the rules between rows need not hold.
        user_ids: The subjects. Unknown ones have no files.

    Returns:
        Each user id's files, all in one search through the folder.

    Raises:
        FacesError: no readable table, or one of the subjects' files is not a plain file inside the folder.
    """
    _check_collection(user_ids)
    rows = read_rows(folder)
    there = _there(folder, _of_subjects(rows, user_ids))
    copies = find_copies(folder, rows, _names_and_sizes(there)).copies
    images: dict[str, list[str]] = {user_id: [] for user_id in user_ids}
    for row, _ in there:
        images[row.user_id].append(row.file_name)
    return {
        user_id: Held(tuple(names), tuple(sorted({copy for name in names for copy in copies.get(name, ())})))
        for user_id, names in images.items()
    }


def remove_subjects(
    folder: Path,
    user_ids: Collection[str],
    *,
    known: Collection[str] = (),
    cache: Path | None = None,
    reached: Reached = lambda point: None,
) -> Removal:
    """Destroy all images of some subjects, byte-equal copies of them, and every pack of the folder.

    Can be called again: after a kill it finishes, after success it only destroys packs. It waits for packs that are
    being made, not for readers of a pack: they see zeros, which `Faces.is_intact` detects.

    Args:
        folder: The data folder. Its table must be readable; the rules between rows need not hold.
        user_ids: The subjects. Unknown ones are no error.
        known: Names of images and copies that `find_held` gave before a call that was killed; those that no row names
            are destroyed, too. A copy that had been overwritten but not yet removed is not equal to its image any more,
            and an image that was out of sight during that call is not in the table any more.
        cache: Where packs of this folder alone lie too; None for the folder itself and the caches that it recorded.
        reached: Called with the name of each point passed, for logs and for tests that kill the process there.

    Raises:
        FacesError: no readable table, or one of the subjects' files is not a plain file inside the folder.
    """
    _check_collection(user_ids)
    with removing(folder):
        _sweep(folder, reached)
        rows = read_rows(folder)
        leaving = _of_subjects(rows, user_ids)
        there = _there(folder, leaving)
        found = find_copies(folder, rows, _names_and_sizes(there), known=known)
        equal = {*found.known, *(copy for names in found.copies.values() for copy in names)}
        # An image's second name goes with the image: until then its bytes are what tells copies of it.
        inodes = {(status.st_dev, status.st_ino) for _, status in there}
        linked = {name for name in equal if _inode(folder, name) in inodes}
        gone = {name for name in known if ".." not in name.split("/") and not os.path.lexists(folder / name)}
        n_packed = _destroy_packs(folder, cache, reached)
        n_bytes = _destroy(folder, sorted((equal - linked) | gone), "copy destroyed", reached)
        n_bytes += _destroy(folder, [*(row.file_name for row in leaving), *sorted(linked)], "image destroyed", reached)
        if leaving:
            _replace_table(folder, (row for row in rows if row.user_id not in user_ids), reached)
        return Removal(len(leaving), n_bytes, n_packed, len(equal), found.n_unnamed - len(equal))


def _check_collection(user_ids: Collection[str]) -> None:
    if isinstance(user_ids, str):
        raise FacesError("Expected a collection of user ids, got a string; pass [user_id] for one person.")


def _names_and_sizes(there: Iterable[tuple[Row, os.stat_result]]) -> list[tuple[str, int]]:
    return [(row.file_name, status.st_size) for row, status in there]


def _inode(folder: Path, name: str) -> tuple[int, int]:
    status = os.lstat(folder / name)
    return status.st_dev, status.st_ino


def _of_subjects(rows: Rows, user_ids: Collection[str]) -> list[Row]:
    wanted = set(user_ids)
    is_wanted = np.array([value in wanted for value in rows.user_ids.values], dtype=bool)
    return [rows[index] for index in np.flatnonzero(is_wanted[rows.user_ids.positions])]


def _there(folder: Path, rows: Iterable[Row]) -> list[tuple[Row, os.stat_result]]:
    """Those of the rows whose files exist, each with its file's `lstat`."""
    return [(row, file_status(folder, row)) for row in rows if os.path.lexists(folder / row.file_name)]


def _sweep(folder: Path, reached: Reached) -> None:
    """Destroy temporary tables that a killed call left; they contain user ids."""
    # The old one may be the table itself under a second name, if the call was killed between the link and the rename.
    files.destroy(folder / NEW_TABLE, folder / OLD_TABLE, keep_linked=True, reached=reached)


def _destroy_packs(folder: Path, cache: Path | None, reached: Reached) -> int:
    """Destroy every pack of the folder; returns how many."""
    n_packed = 0
    for pack in find_packs(folder, cache):
        files.destroy_folder(pack, reached=reached)
        n_packed += 1
        reached("pack destroyed")
    return n_packed


def _destroy(folder: Path, names: Collection[str], point: str, reached: Reached) -> int:
    """Destroy some files and the folders they leave or left empty (their names may be telling); returns their bytes."""
    n_bytes = files.destroy(
        *(folder / name for name in names), reached=lambda passed: reached(point if passed == "unlinked" else passed)
    )
    for emptied in {(folder / name).parent for name in names}:
        parent = emptied
        while parent != folder and not (parent.exists() and any(parent.iterdir())):
            if parent.exists():
                parent.rmdir()
                files.flush_folder(parent.parent)
                reached("folder removed")
            parent = parent.parent
    return n_bytes


def _replace_table(folder: Path, rows: Iterable[Row], reached: Reached) -> None:
    """Put a table of `rows` in place and destroy the old one; it keeps a name until then, so no kill can lose it."""
    table, old = folder / METADATA, folder / OLD_TABLE
    stage_table(folder, rows)
    reached("new table written")
    os.link(table, old)
    files.flush_folder(folder)
    reached("old table linked")
    os.replace(folder / NEW_TABLE, table)
    files.flush_folder(folder)
    reached("table replaced")
    files.destroy(old, reached=reached)
