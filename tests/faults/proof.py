"""A certificate checked with nothing of Expunge's: Ed25519 and SHA-256 alone, as an auditor's own program would do it.

The formats are DSSE (`PAE`), RFC 6962 (section 2.1) and c2sp.org/signed-note. Everything here is the slow and plain
form, so that it shares no code and no thought with `audit.proof.log` and `audit.proof.envelope`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


class ProofError(Exception):
    """A certificate that is not what it must be."""


@dataclass(frozen=True)
class Proven:
    """A certificate whose signature, place in the log and checkpoint were checked."""

    statement: Mapping[str, Any]
    index: int
    tree_size: int

    @property
    def predicate(self) -> Mapping[str, Any]:
        """What it says."""
        found: Mapping[str, Any] = self.statement["predicate"]
        return found

    @property
    def weights(self) -> str:
        """SHA-256 (hex) of the weights it is about."""
        return str(self.statement["subject"][0]["digest"]["sha256"])


def prove(certificate: Mapping[str, Any], keys: Iterable[Ed25519PublicKey], entries: Sequence[bytes]) -> Proven:
    """Check a certificate's file against public keys and the whole log.

    Raises:
        ProofError: it fails.
    """
    keys, envelope, place = list(keys), certificate["envelope"], certificate["log"]
    payload = base64.b64decode(envelope["payload"], validate=True)
    kind = envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    signatures = [base64.b64decode(each["sig"], validate=True) for each in envelope["signatures"]]
    if not any(_is_signed(key, signature, signed) for key in keys for signature in signatures):
        raise ProofError("is signed by no published key")
    size, root = _checkpoint(place["checkpoint"], keys)
    canonical = json.dumps(envelope, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    entry = {"envelope_sha256": sha256(canonical).hexdigest(), "kind": "certificate"}
    leaf = _leaf(json.dumps(entry, sort_keys=True, separators=(",", ":")).encode())
    index, path = int(place["index"]), [base64.b64decode(node, validate=True) for node in place["inclusion_proof"]]
    if _climb(index, size, leaf, path) != root:
        raise ProofError("has an inclusion proof that does not lead to its checkpoint's root")
    if size > len(entries) or _root([_leaf(each) for each in entries[:size]]) != root:
        raise ProofError("has a checkpoint that is of another log than the one published")
    if _leaf(entries[index]) != leaf:
        raise ProofError("is not the entry of the log that it says it is")
    return Proven(json.loads(payload), index, size)


def _is_signed(key: Ed25519PublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


def _checkpoint(note: str, keys: Iterable[Ed25519PublicKey]) -> tuple[int, bytes]:
    """Size and root of a signed checkpoint."""
    text, _, lines = note.rpartition("\n\n")
    signatures = [base64.b64decode(line.split(" ")[2])[4:] for line in lines.splitlines()]
    if not any(_is_signed(key, signature, f"{text}\n".encode()) for key in keys for signature in signatures):
        raise ProofError("has a checkpoint that no published key signed")
    _, size, root = text.splitlines()[:3]
    return int(size), base64.b64decode(root, validate=True)


def _leaf(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def _split(size: int) -> int:
    """The largest power of two below the size."""
    return 1 << (size - 1).bit_length() - 1


def _root(leaves: Sequence[bytes]) -> bytes:
    if len(leaves) < 2:
        return leaves[0] if leaves else sha256(b"").digest()
    k = _split(len(leaves))
    return _node(_root(leaves[:k]), _root(leaves[k:]))


def _climb(index: int, size: int, leaf: bytes, path: Sequence[bytes]) -> bytes | None:
    """Root of a tree of the size in which the leaf has the audit path; none if the path has another length."""
    if size == 1:
        return None if path else leaf
    if not path or index >= size:
        return None
    k, sibling = _split(size), path[-1]
    below = _climb(index, k, leaf, path[:-1]) if index < k else _climb(index - k, size - k, leaf, path[:-1])
    if below is None:
        return None
    return _node(below, sibling) if index < k else _node(sibling, below)
