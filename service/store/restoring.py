"""A home that is being restored: nothing may start in it before it is whole.

Tested in `tests/service/backups/test_restore.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from service.errors import StartupError

BACKING_UP: Final = ".backing-up-"
"""Prefix of the folder that a backup works in; it holds a copy of the database."""
RESTORING: Final = ".restoring-"
"""Prefix of the folder that a restore works in."""
RESTORED: Final = ".restored"
"""Folder of the restored home, whole, until everything in it has its place."""


def is_unfinished(home: Path) -> bool:
    """Whether a restore of the home was begun and has not ended."""
    return (home / RESTORED).exists() or any(home.glob(f"{RESTORING}*"))


def refuse_unfinished(home: Path) -> None:
    """Let nobody use a home that is half there.

    Raises:
        StartupError: its restore goes on, or was killed.
    """
    if is_unfinished(home):
        raise StartupError(
            f"Expected a home, found one that is being restored: {home}. Wait for `expunge restore` to end; where it "
            "was killed, run it again with the same arguments."
        )
