"""Reference banks in the shared storage: a copy of the banks' folder that outlives the worker's machine.

Each bank is one object, `banks/<digest of the key>/<SHA-256 of the object>.tar`, and `blocks.json` another. The files
in the home are the truth; a signed row says which object is their copy. Banks are rewritten where they lie when a
person is erased (`service.banks.store`), and then published anew under another name: the older object is destroyed and
looked for in a listing, before any request of the run is completed.

All of it happens under one lock of the home, so that no copy made before an erasure is published after it.
"""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog
from sqlmodel import select

from service.context import Context
from service.errors import StorageError
from service.store.engine import reading, session
from service.store.objects import Storage
from service.store.tables import StoredBank
from unlearning import files

log = structlog.get_logger()

_STORED = "banks"  # folder of the shared storage
_FILES = ("blocks.json",)
_BANK = re.compile(r"[0-9a-f]{64}")
_INSIDE = re.compile(r"manifest|[0-9a-f]{16}/\d+\.row")  # what a bank's folder holds


def publish(context: Context) -> None:
    """Make the storage's copies those of the home's banks, and destroy older ones; nothing to do without a storage.

    Raises:
        StorageError: the storage could not be reached, or keeps what it was told to destroy.
    """
    if not context.settings.banks_folder.is_dir() or (storage := context.known_storage()) is None:
        return
    with _alone(context):
        here = _names(context.settings.banks_folder)
        for name in here:
            _publish(context, storage, name)
        _destroy_older(context, storage, here)


def follow_erasure(context: Context) -> None:
    """The same after people were dropped from the home's banks; copies of banks that are gone from it go as well.

    Raises:
        StorageError: as `publish`.
    """
    if (storage := context.known_storage()) is None:
        return
    with _alone(context):
        here = set(_names(context.settings.banks_folder))
        for name in here:
            _publish(context, storage, name)
        with session(context.engine) as s:
            for row in s.exec(select(StoredBank)):
                if row.name not in here:
                    s.delete(row)
            s.commit()
        _destroy_older(context, storage, here)


def bring_here(context: Context) -> int:
    """Fetch the banks this home lacks, when the worker starts on another machine; gives how many came.

    A copy that is missing, cut off or altered is left where it is, and built again when it is needed.

    Raises:
        StorageError: the storage could not be reached.
    """
    if (storage := context.known_storage()) is None:
        return 0
    n_fetched = 0
    with _alone(context):
        here = set(_names(context.settings.banks_folder))
        for row in _rows(context).values():
            if row.name in here:
                continue
            content = storage.fetch(_object(row))
            if content is None or hashlib.sha256(content).hexdigest() != row.sha256 or not _is_signed(context, row):
                log.warning("bank.not_fetched", bank=row.name[:12], found=content is not None)
                continue
            _unpack(context.settings.banks_folder / row.name, content)
            n_fetched += 1
    return n_fetched


@contextmanager
def _alone(context: Context) -> Iterator[None]:
    with files.lock(context.settings.banks_folder / "locks" / "storage.lock", exclusive=True):
        yield


def _names(folder: Path) -> list[str]:
    """Everything of the folder that is copied: banks and single files."""
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return sorted(name for name in there if _BANK.fullmatch(name) or name in _FILES)


def _rows(context: Context) -> dict[str, StoredBank]:
    with reading(context.engine) as s:
        return {row.name: row for row in s.exec(select(StoredBank))}


def _publish(context: Context, storage: Storage, name: str) -> None:
    folder = context.settings.banks_folder
    with files.lock(folder / "locks" / f"{name}.lock", exclusive=False):  # the bank store's own lock
        content = _pack(folder / name)
    if content is None:
        return
    row = _rows(context).get(name)
    sha256 = hashlib.sha256(content).hexdigest()
    fresh = StoredBank(
        name=name, sha256=sha256, signature=context.keyring.sign(_signed_bytes(name, sha256)),
        published_at=context.now(),
    )  # fmt: skip
    storage.publish(_object(fresh), content)
    if row is None or row.sha256 != sha256:
        with session(context.engine) as s:
            s.merge(fresh)
            s.commit()


def _destroy_older(context: Context, storage: Storage, here: Collection[str]) -> None:
    """Older copies, and what a killed process left; `here` are the names whose copies were just looked at.

    What a listing lacks is taken for destroyed, so these copies must be in it.
    """
    rows, listed = _rows(context), storage.names(_STORED)
    kept = {_object(row) for row in rows.values()}
    put = {_object(row) for row in rows.values() if row.name in here}
    if n_lacking := len(put - listed):
        raise StorageError(
            f"Expected the shared storage to list the {len(put)} copies of banks put there, it lacks {n_lacking}: what "
            "else it does not list cannot be taken for destroyed. See whether EXPUNGE_STORAGE_URL leads to this "
            "service's store."
        )
    for name in sorted(listed - kept):
        storage.destroy(name)
    if left := storage.names(_STORED) - kept:
        raise StorageError(f"Expected older banks to be gone from the shared storage, it still lists {len(left)}.")


def _object(row: StoredBank) -> str:
    return f"{_STORED}/{row.name}/{row.sha256}.tar"


def _is_signed(context: Context, row: StoredBank) -> bool:
    return context.keyring.verifies(row.signature, _signed_bytes(row.name, row.sha256))


def _signed_bytes(name: str, sha256: str) -> bytes:
    return f"expunge stored bank\n{name}\n{sha256}\n".encode()


def _pack(path: Path) -> bytes | None:
    """A bank's folder or a file as one archive; the same content gives the same bytes. None if it went meanwhile."""
    parts = {"": path} if path.is_file() else {str(each.relative_to(path)): each for each in path.rglob("*")}
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(parts):
            if name and not _INSIDE.fullmatch(name):
                continue  # folders, work of others
            content = parts[name].read_bytes()
            entry = tarfile.TarInfo(name or path.name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        is_empty = not archive.getmembers()
    return None if is_empty else stream.getvalue()


def _unpack(path: Path, content: bytes) -> None:
    """Files of a checked archive: a bank's manifest comes last, and without it a bank is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for entry in sorted(archive.getmembers(), key=lambda each: each.name == "manifest"):
            stream = archive.extractfile(entry)
            if stream is None or not (entry.name == path.name or _INSIDE.fullmatch(entry.name)):
                continue
            target = path if entry.name == path.name else path / entry.name
            target.parent.mkdir(parents=True, exist_ok=True)
            files.overwrite(target, stream.read())
