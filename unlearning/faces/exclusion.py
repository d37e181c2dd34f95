"""Packs and removals of one data folder, in every process and on every machine that shares the folder.

A pack is opened and made under a shared lock of the folder, people are removed under the exclusive one. So no pack is
made of people who are being removed. A removal waits for packs that are being made, but never for whoever trains on
one: it overwrites the pack, and that reader sees zeros.

So that readers can tell, a removal writes a new word into the locked file before it destroys anything. Whoever finds
the word of the moment a pack was opened knows that all that was read from the pack until now was whole.
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
    """Hold removals off while a pack is opened or made; gives the word of the last one.

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
    """Wait for packs that are being opened or made, hold further ones off, and tell whoever reads one.

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
    """Word of the last removal that began; none where the file is gone."""
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
