"""The service's own secrets: files with mode 0600 in one folder, made on first use.

`signing.pem`    Ed25519 private key that signs certificates, checkpoints and weights
`signing.pub`    its public half (PEM), to be handed to auditors
`tombstone.key`  32 bytes: keyed hash under which a person who asked to be erased is remembered
`block.key`      32 bytes: keyed hash that puts subjects into reference blocks
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from service.errors import StartupError


def _write_once(path: Path, content: bytes) -> bytes:
    """Content of `path`, which is made with `content` if it is not there; two racing processes agree on one."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(temporary, path)  # fails if another process was first
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return path.read_bytes()


@dataclass(frozen=True)
class Keyring:
    """The service's secrets; printing it shows none of them."""

    signing_key: Ed25519PrivateKey = field(repr=False)
    tombstone_key: bytes = field(repr=False)
    block_key: bytes = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Keyring:
        """Keys in `folder`, made if missing.

        Raises:
            StartupError: a key file is damaged or readable by others.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        new_key = Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        pem = _write_once(folder / "signing.pem", new_key)
        tombstone_key = _write_once(folder / "tombstone.key", secrets.token_bytes(32))
        block_key = _write_once(folder / "block.key", secrets.token_bytes(32))
        for name in ("signing.pem", "tombstone.key", "block.key"):
            if (folder / name).stat().st_mode & 0o077:
                raise StartupError(f"Expected {folder / name} to be readable by its owner only; run chmod 600 on it.")
        try:
            signing_key = serialization.load_pem_private_key(pem, password=None)
        except ValueError as error:
            raise StartupError(
                f"Expected an Ed25519 private key (PEM) in {folder / 'signing.pem'}: {error}."
            ) from error
        if not isinstance(signing_key, Ed25519PrivateKey) or len(tombstone_key) != 32 or len(block_key) != 32:
            raise StartupError(f"Expected an Ed25519 key and two 32-byte keys in {folder}; restore them from a backup.")
        public_pem = signing_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        _write_once(folder / "signing.pub", public_pem)
        return cls(signing_key, tombstone_key, block_key)

    @property
    def public_key(self) -> Ed25519PublicKey:
        """Public half of the signing key."""
        return self.signing_key.public_key()

    def public_pem(self) -> bytes:
        """Public half of the signing key as PEM."""
        return self.public_key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

    def subject_hash(self, user_id: str) -> str:
        """HMAC-SHA-256 of a user id under the tombstone key, in hex: how a waiting or erased person is recognised."""
        return hmac.new(self.tombstone_key, user_id.encode(), hashlib.sha256).hexdigest()

    def block_hash(self, user_id: str) -> str:
        """HMAC-SHA-256 of a user id under the block key, in hex: the order in which subjects fill blocks."""
        return hmac.new(self.block_key, user_id.encode(), hashlib.sha256).hexdigest()


def commitment(salt: bytes, user_id: str) -> str:
    """Subject commitment of a certificate: HMAC-SHA-256 of the user id under the request's own salt, in hex."""
    return hmac.new(salt, user_id.encode(), hashlib.sha256).hexdigest()
