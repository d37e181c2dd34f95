"""Signed envelopes (DSSE v1.0, github.com/secure-systems-lab/dsse) and the Ed25519 keys that sign them.

An envelope is `{"payload": base64, "payloadType": …, "signatures": [{"keyid": …, "sig": base64}]}`. The signature is
over the pre-authentication encoding `pae`, which covers payload and type.

Tested in `tests/audit/proof/test_certificate.py`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from audit.errors import AuditError
from audit.proof import log
from audit.proof.log import LogError

PAYLOAD_TYPE = "application/vnd.in-toto+json"
MOST_SIGNATURES = 100

_STANDARD = str.maketrans("-_", "+/")
_PEM = re.compile(r"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----", re.DOTALL)


class CertificateError(AuditError):
    """Contents that contradict each other, a file that is not a certificate, or a key that cannot be used."""


def pae(payload_type: str, payload: bytes) -> bytes:
    """The signed bytes: version, then type and payload, each preceded by its length in bytes."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(payload: bytes, *, sign: Callable[[bytes], bytes], public_key: Ed25519PublicKey) -> dict[str, Any]:
    """Envelope of the payload; `sign` returns the Ed25519 signature (64 bytes) of a message."""
    signature = base64.b64encode(sign(pae(PAYLOAD_TYPE, payload))).decode()
    return {
        "payload": base64.b64encode(payload).decode(),
        "payloadType": PAYLOAD_TYPE,
        "signatures": [{"keyid": key_id(public_key), "sig": signature}],
    }


def read_payload(envelope: Mapping[str, Any]) -> bytes:
    """Payload of an envelope, *without* verifying its signature.

    Raises:
        CertificateError: another payload type, or a payload that is not base64.
    """
    if envelope["payloadType"] != PAYLOAD_TYPE:
        raise CertificateError(f"Expected payloadType {PAYLOAD_TYPE}, got {str(envelope['payloadType'])[:80]!r}.")
    try:
        return _from_base64(envelope["payload"])
    except LogError:
        raise CertificateError("Expected the payload in base64, standard or URL-safe.") from None


def find_signer(envelope: Mapping[str, Any], public_keys: Iterable[Ed25519PublicKey]) -> Ed25519PublicKey | None:
    """First of the keys that signed the envelope, or None.

    Signatures by other keys are ignored, and so is `keyid`, which is only a hint in DSSE.

    Raises:
        CertificateError: another payload type, malformed base64, or no list of 1 to 100 signatures.
    """
    message = pae(PAYLOAD_TYPE, read_payload(envelope))
    signatures = envelope["signatures"]
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= MOST_SIGNATURES:
        raise CertificateError(f"Expected signatures to be a list of 1 to {MOST_SIGNATURES} signatures.")
    blobs = [_from_base64(signature["sig"]) for signature in signatures]
    for key in public_keys:
        for blob in blobs:
            try:
                key.verify(blob, message)
            except InvalidSignature:
                continue
            return key
    return None


def digest(envelope: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the envelope's canonical JSON, with its base64 in the standard alphabet and padding."""
    payload, signatures = _standard(envelope["payload"]), envelope["signatures"]
    signatures = [{**signature, "sig": _standard(signature["sig"])} for signature in signatures]
    return sha256(log.canonical_json({**envelope, "payload": payload, "signatures": signatures})).hexdigest()


def _from_base64(text: str) -> bytes:
    """Bytes of base64, standard or URL-safe, with or without padding: DSSE lets a producer choose.

    Raises:
        LogError: anything else; also two alphabets in one text, half of the padding, or bits left over.
    """
    bare = text.rstrip("=")
    padding = "=" * (-len(bare) % 4)
    if text not in (bare, bare + padding):
        raise LogError(f"Expected base64 with its padding or without, got {text[:40]!r}.")
    standard = bare if "+" in bare or "/" in bare else bare.translate(_STANDARD)
    return log.from_base64(standard + padding)


def _standard(text: str) -> str:
    return base64.b64encode(_from_base64(text)).decode()


def key_id(public_key: Ed25519PublicKey) -> str:
    """SHA-256 (hex) of the key's SubjectPublicKeyInfo in DER."""
    return sha256(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def public_keys_pem(public_keys: Iterable[Ed25519PublicKey]) -> str:
    """The keys in PEM, one after the other."""
    return "".join(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode() for key in public_keys)


def read_published_keys(content: bytes) -> tuple[tuple[Ed25519PublicKey, ...], dict[str, datetime]]:
    """Public keys of a PEM file or of the JSON of `GET /v1/keys`, and the end of validity of keys by key id.

    Raises:
        CertificateError: neither of the two, or a key that is not Ed25519.
    """
    if not content.lstrip().startswith(b"{"):
        return read_public_keys(content), {}
    try:
        rows = log.parse_json(content)["keys"]
        keys = tuple(key for row in rows for key in read_public_keys(str(row["pem"])))
        until = [row.get("valid_until") for row in rows]
        return keys, {key_id(k): datetime.fromisoformat(u) for k, u in zip(keys, until, strict=True) if u}
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CertificateError(f"Expected the JSON of GET /v1/keys, got something else: {error!r}.") from None


def read_public_keys(pem: str | bytes) -> tuple[Ed25519PublicKey, ...]:
    """All public keys in a PEM text, in its order.

    Raises:
        CertificateError: no key, or one that is not Ed25519.
    """
    text = pem.decode("ascii", "replace") if isinstance(pem, bytes) else pem
    keys = []
    for block in _PEM.findall(text):
        try:
            key = load_pem_public_key(block.encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            raise CertificateError(f"Expected a public key in PEM, got one that cannot be read: {error}.") from None
        if not isinstance(key, Ed25519PublicKey):
            raise CertificateError(f"Expected an Ed25519 public key, got {type(key).__name__}.")
        keys.append(key)
    if not keys:
        raise CertificateError("Expected a public key in PEM (-----BEGIN PUBLIC KEY-----), found none.")
    return tuple(keys)
