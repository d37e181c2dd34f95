"""The service's own secrets: files with mode 0600 in one folder, made on first use.

`signing.pem`    Ed25519 private key that signs certificates, checkpoints and weights; see `signing.py`
`signing.pub`    its public half (PEM), to be handed to auditors
`retired/*.pub`  public halves of the signing keys before it
`tombstone.key`  32 bytes: keyed hash under which a person who asked to be erased is remembered
`block.key`      32 bytes: keyed hash that puts subjects into reference blocks
`rerun.key`      32 bytes: keyed hash that chooses the runs made a second time; its own hash is public
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from service.errors import StartupError
from service.keys.signing import SigningKeys, write_once

SECRETS = ("tombstone.key", "block.key", "rerun.key")


@dataclass(frozen=True)
class Keyring:
    """The service's secrets; printing it shows none of them."""

    signing: SigningKeys = field(repr=False)
    tombstone_key: bytes = field(repr=False)
    block_key: bytes = field(repr=False)
    rerun_key: bytes = field(repr=False)

    @classmethod
    def open(cls, folder: Path) -> Keyring:
        """Keys in `folder`, made if missing.

        Raises:
            StartupError: a key file is damaged or readable by others.
        """
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        signing = SigningKeys(folder)
        keys = [write_once(folder / name, secrets.token_bytes(32)) for name in SECRETS]
        for name, key in zip(SECRETS, keys, strict=True):
            if (folder / name).stat().st_mode & 0o077:
                raise StartupError(f"Expected {folder / name} to be readable by its owner only; run chmod 600 on it.")
            if len(key) != 32:
                raise StartupError(f"Expected 32 bytes in {folder / name}, got {len(key)}; restore it from a backup.")
        return cls(signing, *keys)

    def secrets(self) -> dict[str, bytes]:
        """The secrets that never change, by the names of their files."""
        return dict(zip(SECRETS, (self.tombstone_key, self.block_key, self.rerun_key), strict=True))

    @property
    def signing_key(self) -> Ed25519PrivateKey:
        """The key that signs now; of two calls the second may give the next key, so take it once a signature."""
        return self.signing.current().key

    @property
    def public_key(self) -> Ed25519PublicKey:
        """Public half of the key that signs now."""
        return self.signing_key.public_key()

    @property
    def public_keys(self) -> tuple[Ed25519PublicKey, ...]:
        """Public halves of the key that signs now and of every one before it, newest first."""
        return tuple(key.public for key in self.signing.published())

    def sign(self, message: bytes) -> str:
        """Signature in base64, by the key that signs now."""
        return base64.b64encode(self.signing_key.sign(message)).decode()

    def verifies(self, signature: str, message: bytes) -> bool:
        """Whether this service signed the message, with its present key or an earlier one; never raises."""
        try:
            content = base64.b64decode(signature, validate=True)
        except (binascii.Error, ValueError):
            return False
        return any(_verifies(key, content, message) for key in self.public_keys)

    def subject_hash(self, user_id: str) -> str:
        """HMAC-SHA-256 of a user id under the tombstone key, in hex: how a waiting or erased person is recognised."""
        return hmac.new(self.tombstone_key, user_id.encode(), hashlib.sha256).hexdigest()

    def block_hash(self, user_id: str) -> str:
        """HMAC-SHA-256 of a user id under the block key, in hex: the order in which subjects fill blocks."""
        return hmac.new(self.block_key, user_id.encode(), hashlib.sha256).hexdigest()


def commitment(salt: bytes, user_id: str) -> str:
    """Subject commitment of a certificate: HMAC-SHA-256 of the user id under the request's own salt, in hex."""
    return hmac.new(salt, user_id.encode(), hashlib.sha256).hexdigest()


def _verifies(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True
