"""Files of the data folder that no row of its table names: copies, earlier tables and other files.

An erasure finds images by the table. Files that the table does not name are compared by content: a byte-equal copy of
an image is found under any name. Another encoding of the image, an archive that contains it, and a text that mentions
the subject are not found.

The folder's own files are neither named nor unnamed: the table, the tables an erasure stages, and packs.

Tested in `tests/unlearning/faces/test_removal.py`.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Final

import numpy as np

from unlearning.faces.dataset import METADATA
from unlearning.faces.exclusion import REMOVALS
from unlearning.faces.packing import ELSEWHERE, PACKED, find_packs
from unlearning.faces.rows import Rows
from unlearning.faces.writing import NEW_TABLE

OLD_TABLE = ".metadata.csv.old"
LOOKED_THROUGH: Final = (
    "The files of the data folder that no row of its table names were compared with the subject's images byte for "
    "byte, and equal ones were destroyed. Not looked for: the same images in another encoding or size or inside an "
    "archive, texts that mention the subject, images that had been taken out of the table before, and anything outside "
    "the data folder that the service did not write."
)
"""What an erasure looks through for copies and what it does not, as certificates may say it."""
_OWN = frozenset({METADATA, NEW_TABLE, OLD_TABLE, f"{PACKED}/{ELSEWHERE}", REMOVALS})


@dataclass(frozen=True, slots=True)
class Unnamed:
    """A file that no row names; `name` is relative to the folder, `status` is its `lstat`."""

    name: str
    status: os.stat_result


@dataclass(frozen=True, slots=True)
class Found:
    """Result of a search through a data folder.

    Attributes:
        copies: For each image that has copies their names, sorted.
        known: Those of the files found earlier that still exist and that no row names.
        n_unnamed: Files that no row names, copies included.
    """

    copies: dict[str, tuple[str, ...]]
    known: tuple[str, ...]
    n_unnamed: int


def find_unnamed(folder: Path, rows: Rows) -> Iterator[Unnamed]:
    """Every file below the folder that none of the rows names and that is not the folder's own.

    Links are not followed; a link counts as a file.
    """
    # Hashes, for a long table's names as strings would take more memory than all else. Two different names share one
    # of 64 bits, by which an unnamed file would stay unseen, once in some trillion folders.
    hashes = np.sort(rows.name_hashes())
    packs = {os.fspath(pack) for pack in find_packs(folder)}
    for name, entry in _walk(folder, packs):
        found = np.searchsorted(hashes, hash(name))
        if name not in _OWN and (found == len(hashes) or hashes[found] != hash(name)):
            yield Unnamed(name, entry.stat(follow_symlinks=False))


def find_copies(folder: Path, rows: Rows, images: Sequence[tuple[str, int]], *, known: Collection[str] = ()) -> Found:
    """The files that no row names, and which of them are equal to one of some images byte for byte.

    Sizes are compared first, so that few files are read: those of an image's size, and the images of that size.

    Args:
        folder: The data folder.
        rows: All rows of its table.
        images: Name and size in bytes of each image, all of them plain files that are there.
        known: Names of images and copies found earlier, whatever they contain now.
    """
    of_size: dict[int, list[str]] = defaultdict(list)
    for name, n_bytes in images:
        if n_bytes:  # every empty file is equal to every other, and a copy of nothing
            of_size[n_bytes].append(name)
    suspects: dict[int, list[str]] = defaultdict(list)
    known, known_there, n_unnamed = frozenset(known), [], 0
    for file in find_unnamed(folder, rows):
        n_unnamed += 1
        if file.name in known:
            known_there.append(file.name)
        if stat.S_ISREG(file.status.st_mode) and file.status.st_size in of_size:
            suspects[file.status.st_size].append(file.name)
    copies: dict[str, tuple[str, ...]] = {}
    for n_bytes, names in suspects.items():
        by_digest: dict[bytes, list[str]] = defaultdict(list)
        for name in sorted(names):
            by_digest[_digest(folder / name)].append(name)
        for image in of_size[n_bytes]:
            equal = by_digest.get(_digest(folder / image), ())
            if equal and not _is_zeros(folder / image):  # an image whose destruction was cut short: equal to any zeros
                copies[image] = tuple(equal)
    return Found(copies, tuple(known_there), n_unnamed)


def _walk(folder: Path, leave_out: Iterable[str]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file below a folder, but for some folders in it, with its name relative to the folder."""
    left, root = [os.fspath(folder)], len(os.fspath(folder)) + 1
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    yield entry.path[root:], entry
                elif entry.path not in leave_out:
                    left.append(entry.path)


def _digest(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        return file_digest(file, "sha256").digest()


def _is_zeros(path: Path) -> bool:
    with path.open("rb") as file:
        return not any(piece.strip(b"\0") for piece in iter(lambda: file.read(1 << 20), b""))
