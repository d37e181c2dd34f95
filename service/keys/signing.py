"""The signing key and those before it: files in the keys' folder, looked at again at every signature.

`signing.pem`         the private key that signs; a line before it says since when
`signing.pub`         its public half
`retired/<id>.pub`    public halves of earlier keys; lines before each say from when to when it signed

A rotation replaces `signing.pem` in one rename, so that every process signs with the new key from its next signature
on, and a kill at any moment leaves one key that signs. What is retired first and is still the one that signs (the kill
came between) does not count as retired. Old private keys are overwritten: nobody can sign with them again.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from audit.proof.envelope import key_id, public_keys_pem, read_public_keys
from service.errors import StartupError
from unlearning import files

_LINE = re.compile(r"^(valid-from|valid-until): (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class PublishedKey:
    """A key that signs or signed.

    Attributes:
        valid_until: when the next one took over; none for the one that signs now.
    """

    public: Ed25519PublicKey
    valid_from: datetime
    valid_until: datetime | None

    @property
    def key_id(self) -> str:
        """SHA-256 (hex) of the SubjectPublicKeyInfo, as certificates cite it."""
        return key_id(self.public)


@dataclass(frozen=True)
class SigningKey:
    """The private key that signs now."""

    key: Ed25519PrivateKey
    valid_from: datetime

    @property
    def published(self) -> PublishedKey:
        """What everybody may know of it."""
        return PublishedKey(self.key.public_key(), self.valid_from, None)


class SigningKeys:
    """The signing keys of a folder; the first is made if there is none.

    Raises:
        StartupError: the key is damaged or readable by others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "signing.pem"
        if not self._path.exists():
            write_once(self._path, _private_text(Ed25519PrivateKey.generate(), datetime.now(UTC)))
        self._read: tuple[tuple[int, int], SigningKey] | None = None
        _write(folder / "signing.pub", _public_text(self.current().published))

    def __repr__(self) -> str:
        return "SigningKeys()"

    def current(self) -> SigningKey:
        """The key that signs now: read again if the file was replaced."""
        while (mark := self._mark()) != (self._read and self._read[0]):
            try:
                self._read = (mark, _parse(self._path, datetime.fromtimestamp(mark[1] / 1e9, UTC)))
            except StartupError:
                if self._mark() == mark:  # else it was replaced while it was read
                    raise
        if self._read is None:
            raise StartupError(f"Expected a signing key at {self._path}.")
        return self._read[1]

    def _mark(self) -> tuple[int, int]:
        """What tells one file under the name from the next."""
        status = self._path.stat()
        if status.st_mode & 0o077:
            raise StartupError(f"Expected {self._path} to be readable by its owner only; run chmod 600 on it.")
        return status.st_ino, status.st_mtime_ns

    def published(self) -> tuple[PublishedKey, ...]:
        """The key that signs now and every one before it, newest first."""
        now = self.current().published
        retired = [_parse_retired(path) for path in (self.folder / "retired").glob("*.pub")]
        earlier = sorted(
            (key for key in retired if key.key_id != now.key_id), key=lambda key: key.valid_from, reverse=True
        )
        return (now, *earlier)

    def rotate(
        self,
        new: Ed25519PrivateKey,
        *,
        now: datetime,
        last_signed_at: datetime | None = None,
        reached: Callable[[str], None] = lambda point: None,
    ) -> None:
        """Sign with `new` from now on; the key before it is kept as a public key and destroyed as a private one.

        A rotation that was killed may leave the old private key or the new one in a temporary file, which the worker's
        sweep destroys.

        Args:
            new: The next key.
            now: Since when it signs.
            last_signed_at: Date of the latest certificate. One that was signed while the clock was ahead is not after
                the end of its key.
            reached: Called at `retired` and at the points of `files.overwrite`.
        """
        before = self.current()
        (self.folder / "retired").mkdir(exist_ok=True, mode=0o700)
        retired = PublishedKey(before.key.public_key(), before.valid_from, max(now, last_signed_at or now))
        _write(self.folder / "retired" / f"{retired.key_id}.pub", _public_text(retired))
        reached("retired")
        files.overwrite(self._path, _private_text(new, now), reached=reached)
        _write(self.folder / "signing.pub", _public_text(self.current().published))

    def expires_at(self, days: float) -> datetime:
        """When the key that signs now should have been rotated: `days` after it began to sign."""
        return self.current().valid_from + timedelta(days=days)


def write_once(path: Path, content: bytes) -> bytes:
    """Content of `path`, which is made with `content` if it is not there; two racing processes agree on one."""
    if not path.exists():
        files.place(path, content, is_whole=lambda _: True)
    return path.read_bytes()


def _write(path: Path, content: bytes) -> None:
    if not path.exists() or path.read_bytes() != content:
        files.overwrite(path, content)


def _private_text(key: Ed25519PrivateKey, valid_from: datetime) -> bytes:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return f"valid-from: {valid_from.isoformat()}\n".encode() + pem


def _public_text(key: PublishedKey) -> bytes:
    until = f"valid-until: {key.valid_until.isoformat()}\n" if key.valid_until else ""
    return f"valid-from: {key.valid_from.isoformat()}\n{until}{public_keys_pem([key.public])}".encode()


def _times(text: str) -> dict[str, datetime]:
    return {name: datetime.fromisoformat(value) for name, value in _LINE.findall(text)}


def _parse(path: Path, written_at: datetime) -> SigningKey:
    """The private key of a file; without a line that says since when it signs, since it was written."""
    content = path.read_bytes()
    try:
        times = _times(content.decode("ascii"))
        key = serialization.load_pem_private_key(content, password=None)
    except ValueError as error:
        raise StartupError(f"Expected an Ed25519 private key (PEM) in {path}: {error}.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StartupError(f"Expected an Ed25519 private key in {path}, got {type(key).__name__}; restore it.")
    return SigningKey(key, times.get("valid-from", written_at))


def _parse_retired(path: Path) -> PublishedKey:
    text = path.read_text()
    times = _times(text)
    if times.keys() != {"valid-from", "valid-until"}:
        raise StartupError(f"Expected the lines valid-from and valid-until in {path}; restore it from a backup.")
    return PublishedKey(read_public_keys(text)[0], times["valid-from"], times["valid-until"])
