"""A whole data folder checked: the table, its subjects, and every file.

Of several broken rules the one of the earliest line is told.

Tested in `tests/unlearning/faces/test_dataset.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np

from unlearning.errors import FacesError, ImageError
from unlearning.faces.dataset import MOST_LISTED, Progress, file_status, raise_all, read_image, read_metadata
from unlearning.faces.decoding import check_image
from unlearning.faces.rows import Row, Rows, repeated
from unlearning.faces.threads import map_spans


def check_folder(
    folder: Path,
    *,
    classes_known: bool = False,
    erased: Callable[[str], bool] = lambda user_id: False,
    decode: bool = True,
    progress: Progress | None = None,
) -> Rows:
    """Check a whole data folder: the table, its subjects, and every file.

    Args:
        folder: The data folder.
        classes_known: As for `read_metadata`.
        erased: Whether a subject was erased and must not be here; called once for each subject.
        decode: False for the fast check, which does not open the files. True also decodes every image and finds
            images that belong to two subjects.
        progress: Called with (images decoded, images in all).

    Returns:
        Rows in the order of the table.

    Raises:
        FacesError: the first broken rule, with its line; of images that cannot be decoded all, up to `MOST_LISTED`.
    """
    rows = read_metadata(folder, classes_known=classes_known)
    _check_nobody_erased(rows, erased)
    _check_files(folder, rows)
    if decode:
        _check_images(folder, rows, progress)
    return rows


def _check_nobody_erased(rows: Rows, erased: Callable[[str], bool]) -> None:
    for user_id in rows.user_ids.values:
        if erased(user_id):
            raise FacesError(
                "This person was erased and must not come back; remove all their images and lines.",
                row=rows[rows.user_ids.first(user_id)].line,
            )


def _check_files(folder: Path, rows: Rows) -> None:
    """Check that every row has a file of its own."""
    inodes, done = np.empty(len(rows), np.uint64), 0
    try:
        for row in rows:
            inodes[done] = file_status(folder, row).st_ino
            done += 1
    except FacesError:
        _check_own(folder, rows, inodes[:done])  # what is wrong further up comes first
        raise
    _check_own(folder, rows, inodes)


def _check_own(folder: Path, rows: Rows, inodes: np.ndarray) -> None:
    """Check that no two rows have the same file, among the first ones whose inodes `(k,)` are known."""
    seen: dict[tuple[int, int], Row] = {}
    for index in np.flatnonzero(repeated(inodes)):  # one number on two devices is two files
        row = rows[index]
        status = file_status(folder, row)
        twin = seen.setdefault((status.st_dev, status.st_ino), row)
        if twin is not row:
            raise FacesError(
                f"Expected a file of its own, but it is a hard link to the file of line {twin.line}; copy it.",
                row=row.line,
            )


def _check_images(folder: Path, rows: Rows, progress: Progress | None) -> None:
    """Check that every file can be decoded and that no image belongs to two subjects."""

    def digests_of(span: range) -> list[bytes | FacesError]:
        return [_check_image(folder, rows[index]) for index in span]

    digests, done, n_sound = np.empty((len(rows), 32), np.uint8), 0, len(rows)
    errors: list[FacesError] = []
    n_errors = 0
    for batch in map_spans(digests_of, len(rows)):
        for each in batch:
            if isinstance(each, FacesError):
                n_sound = min(n_sound, done)
                n_errors += 1
                errors += [each] if n_errors <= MOST_LISTED else []
            else:
                digests[done] = np.frombuffer(each, np.uint8)
            done += 1
        if progress is not None:
            progress(done, len(rows))
    _check_owners(rows, digests[:n_sound])  # what is wrong further up comes first
    raise_all(errors, n_errors)


def _check_owners(rows: Rows, digests: np.ndarray) -> None:
    """Check that no image belongs to two subjects, among the first ones whose digests, uint8 `(k, 32)`, are known."""
    seen: dict[bytes, Row] = {}
    for index in np.flatnonzero(repeated(np.ascontiguousarray(digests[:, :8]).view(np.int64)[:, 0])):
        row = rows[index]
        twin = seen.setdefault(digests[index].tobytes(), row)
        if twin.user_id != row.user_id:
            raise FacesError(
                f"The same image belongs to another person in line {twin.line}; erasing one would leave it with "
                "the other, so take one of the two out.",
                row=row.line,
            )


def _check_image(folder: Path, row: Row) -> bytes | FacesError:
    """SHA-256 of a row's file, or why it cannot be read or decoded."""
    try:
        data = read_image(folder, row)
        check_image(data)
    except FacesError as error:
        return error
    except ImageError as error:
        return FacesError(f"{error} Replace the file or take the line out.", row=row.line)
    return sha256(data).digest()
