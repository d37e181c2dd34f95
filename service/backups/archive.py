"""The file of a backup: a tar whose last member, `manifest.json`, has the size and SHA-256 of every other one.

    database/expunge.db       SQLite's copy of the request database, or database/expunge.dump, of pg_dump
    keys/…, data/…, models/…  files of the home, by their paths in it
    manifest.json             when it was made, of which schema and log, and the digests

Without the last member it is no backup: of what was cut off, nothing is restored.

Tested in `tests/service/backups/test_restore.py`.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final, Literal

from service.errors import BackupError

FORMAT: Final = 1
SQLITE, POSTGRESQL = "database/expunge.db", "database/expunge.dump"
_MANIFEST: Final = "manifest.json"
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a backup is of.

    Attributes:
        created_at: ISO 8601, when its database was copied.
        expunge, schema: version that made it and schema of its database.
        log_size, log_root: head of the log then; the root in hex.
        files: SHA-256 in hex and size in bytes, by the member's name.
    """

    created_at: str
    expunge: str
    schema: str
    log_size: int
    log_root: str
    files: dict[str, tuple[str, int]]
    format: int = FORMAT

    @classmethod
    def from_bytes(cls, content: bytes) -> Manifest:
        """The manifest of its JSON.

        Raises:
            BackupError: it is none, or of a later format.
        """
        try:
            values: dict[str, Any] = json.loads(content)
            files = {name: (str(digest), int(size)) for name, (digest, size) in values.pop("files").items()}
            manifest = cls(**values, files=files)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise BackupError(
                "Expected the manifest of a backup at the end of the file, got something else."
            ) from error
        if manifest.format != FORMAT:
            raise BackupError(
                f"Expected a backup of format {FORMAT}, got {manifest.format}; restore it with the version of Expunge "
                f"that made it, {manifest.expunge}."
            )
        return manifest


class Writer:
    """A backup that is being written to a stream."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._tar = tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK)  # noqa: SIM115
        self.files: dict[str, tuple[str, int]] = {}

    def add(self, name: str, path: Path) -> str:
        """Add a file under a name; gives its SHA-256.

        Raises:
            OSError: it cannot be read, is gone, or became shorter meanwhile.
        """
        with path.open("rb") as file:
            info = self._tar.gettarinfo(arcname=name, fileobj=file)
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            return self._add(info, file)

    def add_bytes(self, name: str, content: bytes) -> None:
        """Add a file with this content, readable by its owner."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o600
        self._add(info, BytesIO(content))

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        """End the stream; without a manifest it is no backup."""
        with suppress(OSError):
            self._tar.close()

    def finish(self, **facts: Any) -> Manifest:
        """Add the manifest, which makes it a backup."""
        manifest = Manifest(**facts, files=self.files)
        self.add_bytes(_MANIFEST, json.dumps(asdict(manifest)).encode())
        self._tar.close()
        return manifest

    def _add(self, info: tarfile.TarInfo, file: IO[bytes]) -> str:
        hashed = _Hashed(file)
        info.type = tarfile.REGTYPE
        self._tar.addfile(info, hashed)
        self.files[info.name] = hashed.digest, info.size
        return hashed.digest


def extract(stream: IO[bytes], folder: Path | None, *, only: tuple[str, ...] = ()) -> Manifest:
    """Write the members of a backup below a folder, each compared with the manifest.

    Args:
        folder: an empty one, or none to compare only.
        only: names, or beginnings of names, of the members to write; empty: all.

    Raises:
        BackupError: it is no backup, not a whole one, or was altered. What was written is not to be used.
        OSError: a file cannot be written.
    """
    found: dict[str, tuple[str, int]] = {}
    manifest: Manifest | None = None
    with _readable():
        for name, mode, content in _members(stream):
            if manifest is not None:
                raise BackupError("Expected nothing after the manifest of the backup; it was altered.")
            if name == _MANIFEST:
                manifest = Manifest.from_bytes(content.read())
                continue
            hashed = _Hashed(content)
            wanted = folder is not None and (not only or name.startswith(only))
            size = _write(hashed, folder / name, mode) if folder is not None and wanted else _skim(hashed)
            found[name] = hashed.digest, size
    if manifest is None:
        raise BackupError("Expected a manifest at the end of the backup, found none: it is cut off. Take another one.")
    if differing := sum(found.get(name) != manifest.files.get(name) for name in found.keys() | manifest.files.keys()):
        raise BackupError(f"Expected the files of the backup's manifest; {differing} differ or are missing.")
    return manifest


def _members(stream: IO[bytes]) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Name, mode and content of each member; plain files within the folder only."""
    with tarfile.open(fileobj=stream, mode="r|*", bufsize=_CHUNK) as tar:
        for info in tar:
            parts = PurePosixPath(info.name).parts
            content = tar.extractfile(info) if info.isreg() else None
            if content is None or info.name.startswith("/") or ".." in parts or not parts:
                raise BackupError("Expected plain files alone in the backup; it was altered.")
            yield info.name, info.mode & 0o777, content


@contextmanager
def _readable() -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, EOFError) as error:
        raise BackupError(
            "Expected a whole backup of `expunge backup`, got something else, or only its start."
        ) from error


def _write(content: _Hashed, path: Path, mode: int) -> int:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with path.open("xb") as file:
        path.chmod(mode)
        size = 0
        while chunk := content.read(_CHUNK):
            size += file.write(chunk)
    return size


def _skim(content: _Hashed) -> int:
    size = 0
    while chunk := content.read(_CHUNK):
        size += len(chunk)
    return size


class _Hashed:
    """A stream that is hashed as it is read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._stream.read(size)
        self._hash.update(chunk)
        return chunk

    @property
    def digest(self) -> str:
        """SHA-256 in hex of what was read."""
        return self._hash.hexdigest()


Kind = Literal["sqlite", "postgresql"]


def kind_of(manifest: Manifest) -> Kind:
    """Of which database the backup is.

    Raises:
        BackupError: it holds none.
    """
    if SQLITE in manifest.files:
        return "sqlite"
    if POSTGRESQL in manifest.files:
        return "postgresql"
    raise BackupError("Expected a database in the backup, found none.")
