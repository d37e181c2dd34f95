"""Which block a person is in: settled once by a keyed hash, kept in `blocks.json` beside the banks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from audit.statistics.blocks import assign_blocks
from service.errors import DataChangedError, DataFolderError
from service.keys.keyring import Keyring
from service.settings import Settings
from unlearning import files
from unlearning.faces import Faces

BLOCK_SHARE = 0.05


def blocks(settings: Settings, keyring: Keyring, faces: Faces) -> dict[str, str]:
    """Block of every training subject, as keyed hash → block; subjects that are new get new blocks, none ever moves.

    Raises:
        DataChangedError: somebody was erased since the faces were opened, and must not come back to the list.
    """
    people = faces.train_subjects()
    known = _read(settings)
    if all(keyring.block_hash(person) in known for person in people):
        return known
    with files.lock(_path(settings).with_suffix(".lock"), exclusive=True):
        if not faces.is_intact():
            raise DataChangedError
        known = _read(settings)  # another process may have been first
        new = sorted(value for person in people if (value := keyring.block_hash(person)) not in known)
        if new:
            fresh = assign_blocks(new, share=min(1.0, BLOCK_SHARE * len(people) / len(new)))
            name = hashlib.sha256("\n".join(new).encode()).hexdigest()[:8]
            known |= {value: f"{name}-{block}" for value, block in fresh.items()}
            _write(settings, known)
    return known


def forget_from_blocks(settings: Settings, tags: Iterable[str]) -> None:
    """Take erased subjects out of the block list."""
    gone = set(tags)
    with files.lock(_path(settings).with_suffix(".lock"), exclusive=True):
        known = _read(settings)
        if gone & known.keys():
            _write(settings, {value: block for value, block in known.items() if value not in gone})


def _path(settings: Settings) -> Path:
    return settings.banks_folder / "blocks.json"


def _read(settings: Settings) -> dict[str, str]:
    path = _path(settings)
    try:
        known: dict[str, str] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataFolderError(
            f"Expected {path} to be JSON, but {error}. Take it away: blocks are drawn anew, and banks are built anew."
        ) from error
    return known


def _write(settings: Settings, known: dict[str, str]) -> None:
    settings.banks_folder.mkdir(parents=True, exist_ok=True)
    files.overwrite(_path(settings), json.dumps(known, indent=0, sort_keys=True).encode())
