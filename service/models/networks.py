"""Converted networks (`service.inference.network`): files named by their SHA-256, which a version's manifest names.

Versions of one shape share one. It holds no weight, and goes with the last version that names it. So that no version
loses it to the destruction of another, a row is written before the file, and files are listed before the rows are read.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from sqlmodel import select

from service.context import LINE, Context
from service.errors import WeightsError
from service.models.manifest import Manifest
from service.settings import Settings
from service.store.engine import reading
from service.store.tables import ModelVersion
from unlearning import files

if TYPE_CHECKING:
    from service.store.objects import Storage

STORED = "models"
"""Folder of the shared storage."""
_SUFFIX = ".network"


def path(settings: Settings, digest: str) -> Path:
    """File of a network."""
    return settings.models_folder / f"{digest}{_SUFFIX}"


def digest_of(network: bytes) -> str:
    """A network's name."""
    return hashlib.sha256(network).hexdigest()


def store(context: Context, network: bytes) -> None:
    """Write a network into this home; nothing happens if it is there whole."""
    file = path(context.settings, digest_of(network))
    if not file.exists() or file.read_bytes() != network:
        file.parent.mkdir(parents=True, exist_ok=True)
        files.overwrite(file, network, mode=0o666)


def publish(storage: Storage, network: bytes) -> None:
    """Put a network into the shared storage; nothing happens if it is there.

    Raises:
        StorageError: the storage did not take it.
    """
    storage.publish(_stored_name(digest_of(network)), network)


def load_checked(context: Context, manifest: Manifest) -> bytes | None:
    """The network that a verified manifest names, from this home or the shared storage; None if it names none.

    Raises:
        WeightsError: it is missing or was altered.
        StorageError: the shared storage could not be reached.
    """
    if not manifest.network:
        return None
    try:
        content: bytes | None = path(context.settings, manifest.network).read_bytes()
    except OSError:
        content = context.storage.fetch(_stored_name(manifest.network)) if context.storage is not None else None
    if content is None or digest_of(content) != manifest.network:
        found = "none" if content is None else digest_of(content)
        raise WeightsError(
            f"Expected the network of this version with SHA-256 {manifest.network}, found {found}; restore "
            f"{path(context.settings, manifest.network).name} from a backup, or set EXPUNGE_BACKEND=torch."
        )
    return content


def destroy_unused(context: Context) -> None:
    """Destroy the networks, here and in the shared storage, that no version names whose weights may still be loaded.

    Raises:
        StorageError: the storage could not be reached, or keeps what it was told to destroy.
    """
    storage, suffix = context.known_storage(), f"*{_SUFFIX}"
    here = list(context.settings.models_folder.glob(suffix))
    there = [name for name in storage.names(STORED) if name.endswith(_SUFFIX)] if storage is not None else []
    if not here and not there:
        return
    with reading(context.engine) as s:
        rows = s.exec(select(ModelVersion).where(ModelVersion.line == LINE, ModelVersion.state != "destroyed")).all()
    used = {row.manifest.get("network", "") for row in rows}
    files.destroy(*(file for file in here if file.stem not in used))
    for name in there:
        if storage is not None and Path(name).stem not in used:
            storage.destroy(name)


def _stored_name(digest: str) -> str:
    return f"{STORED}/{digest}{_SUFFIX}"
