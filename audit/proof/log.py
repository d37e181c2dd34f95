"""Append-only log: a Merkle tree over entries, proofs about it, and signed checkpoints of its head.

A consistency proof shows that a later checkpoint only added entries to an earlier one; an inclusion proof shows that a
checkpoint covers an entry. Hashes are those of RFC 6962, section 2.1
(SHA-256, prefix 0x00 before a leaf, 0x01 before a node); verification follows RFC 9162, sections 2.1.3.2 and 2.1.4.2.
A checkpoint is a signed note (c2sp.org/signed-note) whose text has the three lines of c2sp.org/tlog-checkpoint: origin,
number of entries, root.

Cost: root and proofs of n entries hash n times (about 1 µs each); a proof holds at most ⌈log₂ n⌉ + 1 hashes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from audit.errors import AuditError

EMPTY_ROOT = sha256(b"").digest()
ED25519_NOTE_TYPE = b"\x01"  # signature type of c2sp.org/signed-note
LARGEST_CHECKPOINT_CHARS = 100_000


class LogError(AuditError):
    """An impossible proof, a text that is not a checkpoint, or a value that JSON cannot hold."""


def canonical_json(value: Any) -> bytes:
    """Canonical JSON of a value: sorted keys, no spaces, UTF-8.

    Raises:
        LogError: the value holds NaN, an infinity or something that is not JSON.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8")
    except (TypeError, ValueError) as error:
        raise LogError(
            f"Expected a value that JSON can hold (no NaN, no infinity), got one that it cannot: {error}."
        ) from None


def parse_json(text: str | bytes) -> Any:
    """Parse JSON whose objects have unique names and whose numbers are finite, so that all readers agree on it.

    Raises:
        LogError: a duplicate name, NaN or an infinity.
        ValueError: not JSON.
    """
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_twins)


def _refuse_constant(text: str) -> None:
    raise LogError(f"Expected finite numbers, found {text}.")


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(names := dict(pairs)) != len(pairs):
        raise LogError("Expected each name once in an object, found one twice.")
    return names


def entry(kind: str, **fields: Any) -> bytes:
    """Entry of the log: canonical JSON of `kind` (policy, certificate, …) and its fields."""
    return canonical_json({"kind": kind, **fields})


def leaf_hash(data: bytes) -> bytes:
    """Hash of an entry, 32 bytes (RFC 6962, 2.1)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of two children, 32 bytes (RFC 6962, 2.1)."""
    return sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Sequence[bytes]) -> bytes:
    """Root of the tree over the leaf hashes, 32 bytes; of no leaves `EMPTY_ROOT`.

    The left subtree has the largest power of two below n leaves (RFC 6962, 2.1), as merging equal subtrees from the
    left gives.
    """
    complete: list[tuple[int, bytes]] = []  # (leaves below, hash), sizes falling
    for leaf in leaf_hashes:
        size, node = 1, leaf
        while complete and complete[-1][0] == size:
            _, left = complete.pop()
            size, node = 2 * size, node_hash(left, node)
        complete.append((size, node))
    if not complete:
        return EMPTY_ROOT
    _, node = complete.pop()
    while complete:
        node = node_hash(complete.pop()[1], node)
    return node


def inclusion_proof(index: int, leaf_hashes: Sequence[bytes]) -> tuple[bytes, ...]:
    """Audit path of the leaf at `index`, from the leaf up (RFC 6962, 2.1.1).

    Raises:
        LogError: there is no such leaf.
    """
    return _path(index, len(leaf_hashes), lambda start, stop: root(leaf_hashes[start:stop]))


def inclusion_proofs(indices: Iterable[int], leaf_hashes: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """`inclusion_proof` of many leaves. Shared nodes are hashed once, so all proofs together cost n hashes.

    Raises:
        LogError: there is no such leaf.
    """
    nodes: dict[tuple[int, int], bytes] = {}

    def node(start: int, stop: int) -> bytes:
        """Root over the leaves from `start` to before `stop`."""
        if stop - start == 1:
            return leaf_hashes[start]
        if (start, stop) not in nodes:
            middle = start + _split(stop - start)
            nodes[start, stop] = node_hash(node(start, middle), node(middle, stop))
        return nodes[start, stop]

    return [_path(index, len(leaf_hashes), node) for index in indices]


def _path(index: int, n: int, node: Callable[[int, int], bytes]) -> tuple[bytes, ...]:
    """Audit path of a leaf of n, from the leaf up."""
    if not 0 <= index < n:
        raise LogError(f"Expected index in [0, {n - 1}], got {index}; the log has {n} entries.")
    start, stop, path = 0, n, []
    while stop - start > 1:
        middle = start + _split(stop - start)
        if index < middle:
            path.append(node(middle, stop))
            stop = middle
        else:
            path.append(node(start, middle))
            start = middle
    return tuple(reversed(path))


def verify_inclusion(index: int, size: int, leaf: bytes, proof: Sequence[bytes], expected_root: bytes) -> bool:
    """Whether the proof puts the leaf hash at `index` of a tree of `size` leaves with that root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    position, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position % 2 or position == last:
            node = node_hash(sibling, node)
            while position % 2 == 0 and position:
                position, last = position >> 1, last >> 1
        else:
            node = node_hash(node, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and node == expected_root


def consistency_proof(first_size: int, leaf_hashes: Sequence[bytes]) -> tuple[bytes, ...]:
    """Proof that the tree of the first `first_size` leaves is a prefix of the whole tree (RFC 6962, 2.1.2).

    Empty if the sizes are equal or `first_size` is 0.

    Raises:
        LogError: the log is shorter than `first_size`.
    """
    n = len(leaf_hashes)
    if not 0 <= first_size <= n:
        raise LogError(f"Expected first_size in [0, {n}], got {first_size}; the log has {n} entries.")
    if first_size in (0, n):
        return ()
    start, stop, path = 0, n, []
    while first_size != stop:
        middle = start + _split(stop - start)
        if first_size <= middle:
            path.append(root(leaf_hashes[middle:stop]))
            stop = middle
        else:
            path.append(root(leaf_hashes[start:middle]))
            start = middle
    if start:  # the old root is not itself a node of the path: give the node it ends with
        path.append(root(leaf_hashes[start:stop]))
    return tuple(reversed(path))


def verify_consistency(
    first_size: int, second_size: int, proof: Sequence[bytes], first_root: bytes, second_root: bytes
) -> bool:
    """Whether the proof shows that the second tree only added leaves to the first (RFC 9162, 2.1.4.2)."""
    if not 0 <= first_size <= second_size:
        return False
    if first_size == second_size:
        return not proof and first_root == second_root
    if first_size == 0:
        return not proof and first_root == EMPTY_ROOT
    path = list(proof)
    if first_size & (first_size - 1) == 0:  # the first root is a node of the second tree, so the proof leaves it out
        path.insert(0, first_root)
    if not path:
        return False
    position, last = first_size - 1, second_size - 1
    while position % 2:
        position, last = position >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position % 2 or position == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while position % 2 == 0 and position:
                position, last = position >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        position, last = position >> 1, last >> 1
    return last == 0 and old == first_root and new == second_root


@dataclass(frozen=True)
class Checkpoint:
    """Head of a log: its name, number of entries, and root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not self.origin or "+" in self.origin or any(c.isspace() or not c.isprintable() for c in self.origin):
            raise LogError(f"Expected an origin without spaces, '+' or line breaks, got {self.origin!r}.")
        if self.size < 0:
            raise LogError(f"Expected size >= 0, got {self.size}.")
        if len(self.root) != 32:
            raise LogError(f"Expected a root of 32 bytes, got {len(self.root)}.")

    @property
    def text(self) -> str:
        """The signed text, three lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def sign_checkpoint(checkpoint: Checkpoint, *, sign: Callable[[bytes], bytes], public_key: Ed25519PublicKey) -> str:
    """Signed note of the checkpoint; the key's name in it is the origin.

    Args:
        checkpoint: what to sign.
        sign: returns the Ed25519 signature (64 bytes) of a message.
        public_key: of the signing key, for its identifier.
    """
    return sign_note(checkpoint.text, name=checkpoint.origin, sign=sign, public_key=public_key)


def sign_note(text: str, *, name: str, sign: Callable[[bytes], bytes], public_key: Ed25519PublicKey) -> str:
    """The text, a blank line, and one signature line (c2sp.org/signed-note)."""
    signature = base64.b64encode(note_key_id(name, public_key) + sign(text.encode())).decode()
    return f"{text}\n— {name} {signature}\n"


def note_key_id(name: str, public_key: Ed25519PublicKey) -> bytes:
    """Identifier of an Ed25519 key in a note: the first 4 bytes of SHA-256(name, line feed, type, key)."""
    return sha256(name.encode() + b"\n" + ED25519_NOTE_TYPE + public_key.public_bytes_raw()).digest()[:4]


def read_checkpoint(note: str) -> Checkpoint:
    """Checkpoint in a note, *without* verifying its signatures.

    Raises:
        LogError: the text is not a checkpoint.
    """
    text, _ = _split_note(note)
    lines = text.split("\n")
    if len(lines) < 4 or not all(lines[:-1]):
        raise LogError("Expected a checkpoint of at least three lines (origin, size, root), got fewer or empty ones.")
    origin, size, root_text = lines[:3]
    if not (size.isascii() and size.isdigit()) or len(size) > 18 or (len(size) > 1 and size[0] == "0"):
        raise LogError(f"Expected the checkpoint's second line to be a number of entries, got {size[:40]!r}.")
    return Checkpoint(origin, int(size), from_base64(root_text))


def verify_checkpoint(note: str, public_keys: Iterable[Ed25519PublicKey]) -> Checkpoint | None:
    """Checkpoint in a note if one of the keys signed it under the log's name, else None.

    Signatures by other keys, such as those of witnesses, are ignored.

    Raises:
        LogError: the text is not a signed checkpoint.
    """
    checkpoint = read_checkpoint(note)
    return checkpoint if verify_note(note, name=checkpoint.origin, public_keys=public_keys) else None


def verify_note(note: str, *, name: str, public_keys: Iterable[Ed25519PublicKey]) -> bool:
    """Whether one of the keys signed the note under that name."""
    text, signatures = _split_note(note)
    by_id = {note_key_id(name, key): key for key in public_keys}
    for signer, blob in signatures:
        key = by_id.get(blob[:4])
        if signer != name or key is None:
            continue
        try:
            key.verify(blob[4:], text.encode())
        except InvalidSignature:
            return False  # a line that names a trusted key must be good
        return True
    return False


def from_base64(text: str) -> bytes:
    """Bytes of standard base64 in its canonical encoding.

    Raises:
        LogError: anything else.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if base64.b64encode(data).decode() != text:
        raise LogError(f"Expected standard base64, got {text[:40]!r}.")
    return data


def _split(n: int) -> int:
    """Largest power of two below n, n ≥ 2."""
    return 1 << ((n - 1).bit_length() - 1)


def _split_note(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Signed text with its final line feed, and (name, key id + signature) of each signature line."""
    if len(note) > LARGEST_CHECKPOINT_CHARS:
        raise LogError(f"Expected a checkpoint of at most {LARGEST_CHECKPOINT_CHARS} characters, got {len(note)}.")
    text, blank, tail = note.rpartition("\n\n")
    if not blank or not tail.endswith("\n"):
        raise LogError("Expected a signed checkpoint: text, a blank line, signature lines.")
    signatures = []
    for line in tail[:-1].split("\n"):
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "—" or not parts[1]:
            raise LogError(f"Expected a signature line '— name base64', got {line[:60]!r}.")
        blob = from_base64(parts[2])
        if len(blob) < 5:
            raise LogError(f"Expected a signature after the key's four bytes, got {len(blob)} bytes.")
        signatures.append((parts[1], blob))
    return text + "\n", signatures
