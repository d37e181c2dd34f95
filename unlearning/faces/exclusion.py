"""Mutual exclusion of packs and removals of one data folder, across processes and machines that share the folder.

Packs are opened and made under a shared lock of the folder, subjects are removed under the exclusive lock. So no pack
is made of subjects who are being removed. A removal waits for packs that are being made, but not for readers that train
on
one: it overwrites the pack, and the reader sees zeros.

So that readers can detect this, a removal writes a new token into the locked file before it destroys anything. A reader
that finds the token of the time when it opened the pack knows that everything it has read so far was intact.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

from unlearning import files
from unlearning.errors import FacesError

REMOVALS = ".removals"
"""File of a data folder: the lock, and the word of the last removal; empty before the first one."""


@contextmanager
def opening(folder: Path) -> Iterator[str]:
    """Block removals while a pack is opened or made; yields the token of the last removal.

    Raises:
        FacesError: the folder cannot be written.
    """
    if not folder.is_dir():  # whoever reads it will say so
        yield ""
        return
    with _locked(folder, exclusive=False):
        yield last_removal(folder) or ""


@contextmanager
def removing(folder: Path) -> Iterator[None]:
    """Wait for packs that are being opened or made, block further ones, and write a new token for readers.

    Raises:
        FacesError: the folder cannot be written.
    """
    with _locked(folder, exclusive=True):
        # In place, and never shorter: a reader on another machine finds the new word under the same file handle.
        with (folder / REMOVALS).open("r+b", buffering=0) as file:
            file.write(uuid4().hex.encode())
            os.fsync(file.fileno())
        yield


def last_removal(folder: Path) -> str | None:
    """Token of the last removal that began; None if the file is missing."""
    try:
        return (folder / REMOVALS).read_text(encoding="ascii")
    except FileNotFoundError:
        return None


@contextmanager
def _locked(folder: Path, *, exclusive: bool) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(files.lock(folder / REMOVALS, exclusive=exclusive))
        except OSError as error:
            raise FacesError(
                f"Expected to write in {folder}, where packing and erasing wait for each other: {error.strerror}."
            ) from error
        yield
