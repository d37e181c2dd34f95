"""The log against the RFC's own recursive definitions, published vectors, and forgeries."""

from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.proof import log

# Eight leaves and the roots of their first n, n = 1..8, as published with the first certificate transparency log.
LEAVES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
HASHES = [log.leaf_hash(leaf) for leaf in LEAVES]

NOTE_KEY = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")[1:]  # Go's sumdb/note documentation
NOTE_TEXT = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
NOTE_SIGNATURE = (
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)


def leaves_of(n: int) -> list[bytes]:
    return [log.leaf_hash(str(i).encode()) for i in range(n)]


def naive_split(n: int) -> int:
    return max(2**e for e in range(n.bit_length() + 1) if 2**e < n)


def naive_root(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962, 2.1, as written."""
    if not leaves:
        return sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    k = naive_split(len(leaves))
    return sha256(b"\x01" + naive_root(leaves[:k]) + naive_root(leaves[k:])).digest()


def naive_path(m: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962, 2.1.1, as written."""
    if len(leaves) == 1:
        return []
    k = naive_split(len(leaves))
    if m < k:
        return [*naive_path(m, leaves[:k]), naive_root(leaves[k:])]
    return [*naive_path(m - k, leaves[k:]), naive_root(leaves[:k])]


def naive_subproof(m: int, leaves: list[bytes], known: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962, 2.1.2, as written."""
    if m == len(leaves):
        return [] if known else [naive_root(leaves)]
    k = naive_split(len(leaves))
    if m <= k:
        return [*naive_subproof(m, leaves[:k], known), naive_root(leaves[k:])]
    return [*naive_subproof(m - k, leaves[k:], False), naive_root(leaves[:k])]


def test_published_roots() -> None:
    assert log.EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert log.root([]) == log.EMPTY_ROOT
    assert [log.root(HASHES[:n]) for n in range(1, 9)] == ROOTS


def test_published_consistency_proofs() -> None:
    assert [p.hex() for p in log.consistency_proof(6, HASHES)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]
    assert [p.hex() for p in log.consistency_proof(2, HASHES[:5])] == [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 130), data=st.data())
def test_trees_and_proofs_agree_with_the_definition(n: int, data: st.DataObject) -> None:
    leaves = leaves_of(n)
    index, first = data.draw(st.integers(0, n - 1)), data.draw(st.integers(1, n))
    assert log.root(leaves) == naive_root(leaves)
    assert list(log.inclusion_proof(index, leaves)) == naive_path(index, leaves)
    assert list(log.consistency_proof(first, leaves)) == naive_subproof(first, leaves, True)


def test_every_proof_of_small_trees_verifies() -> None:
    leaves = leaves_of(33)
    roots = [log.root(leaves[:n]) for n in range(34)]
    for n in range(1, 34):
        for index in range(n):
            assert log.verify_inclusion(index, n, leaves[index], log.inclusion_proof(index, leaves[:n]), roots[n])
        for first in range(n + 1):
            assert log.verify_consistency(first, n, log.consistency_proof(first, leaves[:n]), roots[first], roots[n])


@settings(max_examples=200, deadline=None)
@given(n=st.integers(2, 70), data=st.data())
def test_forged_inclusion_is_refused(n: int, data: st.DataObject) -> None:
    leaves = leaves_of(n)
    top = log.root(leaves)
    index = data.draw(st.integers(0, n - 1))
    other = data.draw(st.integers(0, n - 1).filter(lambda i: i != index))
    proof = log.inclusion_proof(index, leaves)
    flipped = list(proof)
    flipped[data.draw(st.integers(0, len(proof) - 1))] = sha256(b"forged").digest()
    assert not log.verify_inclusion(index, n, leaves[other], proof, top)
    assert not log.verify_inclusion(index, n, leaves[index], flipped, top)
    assert not log.verify_inclusion(index, n, leaves[index], proof[:-1], top)
    assert not log.verify_inclusion(index, n, leaves[index], (*proof, top), top)
    assert not log.verify_inclusion(index, n, leaves[index], proof, log.EMPTY_ROOT)
    assert not log.verify_inclusion(other, n, leaves[index], proof, top)
    assert not log.verify_inclusion(n, n, leaves[index], proof, top)
    assert not log.verify_inclusion(-1, n, leaves[index], proof, top)


@settings(max_examples=200, deadline=None)
@given(n=st.integers(2, 70), data=st.data())
def test_rewritten_history_is_refused(n: int, data: st.DataObject) -> None:
    leaves = leaves_of(n)
    first = data.draw(st.integers(1, n - 1))
    changed = data.draw(st.integers(0, first - 1))
    rewritten = [*leaves]
    rewritten[changed] = log.leaf_hash(b"another story")
    old, new = log.root(leaves[:first]), log.root(rewritten)
    assert not log.verify_consistency(first, n, log.consistency_proof(first, rewritten), old, new)
    assert not log.verify_consistency(first, n, log.consistency_proof(first, leaves), old, new)
    assert not log.verify_consistency(first, n, (), old, new)
    good = log.consistency_proof(first, leaves)
    assert not log.verify_consistency(first, n, (*good, old), old, log.root(leaves))
    assert not log.verify_consistency(n, first, good, log.root(leaves), old)


def test_inner_nodes_cannot_pose_as_leaves() -> None:
    left, right = HASHES[:2]
    assert log.leaf_hash(left + right) != log.node_hash(left, right)


def test_what_cannot_be_proved_is_an_error() -> None:
    with pytest.raises(log.LogError, match=r"index in \[0, 7\], got 8"):
        log.inclusion_proof(8, HASHES)
    with pytest.raises(log.LogError, match="first_size"):
        log.consistency_proof(9, HASHES)


def test_ten_thousand_entries_cost_no_more_hashes_than_there_are_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    n, leaves, hashed = 10_000, leaves_of(10_000), []
    node_hash = log.node_hash
    monkeypatch.setattr(log, "node_hash", lambda left, right: hashed.append(1) or node_hash(left, right))

    def cost() -> int:
        """Hashes since the last look."""
        hashed[:], found = [], len(hashed)
        return found

    root = log.root(leaves)
    assert cost() == n - 1  # every node but the leaves, once
    proof = log.inclusion_proof(7_777, leaves)
    assert 0 < cost() < n
    many = log.inclusion_proofs(range(0, n, 7), leaves)
    assert 0 < cost() < n  # of a thousand and more entries together
    assert many[7_777 // 7] == proof
    assert log.verify_inclusion(7_777, n, leaves[7_777], proof, root)
    assert cost() == len(proof) <= 14


def test_canonical_json_has_one_spelling() -> None:
    assert log.canonical_json({"b": [1, 2.5, None], "a": "é"}) == '{"a":"é","b":[1,2.5,null]}'.encode()
    assert log.entry("policy", name="standard") == b'{"kind":"policy","name":"standard"}'
    for value in ({"x": float("nan")}, {"x": float("inf")}, {"x": object()}, {1, 2}, {"x": "\ud800"}):
        with pytest.raises(log.LogError):
            log.canonical_json(value)


def test_the_published_note_verifies_and_is_reproduced() -> None:
    key = Ed25519PublicKey.from_public_bytes(NOTE_KEY)
    note = NOTE_TEXT + "\n" + NOTE_SIGNATURE
    assert log.note_key_id("PeterNeumann", key).hex() == "c74f20a3"
    assert log.verify_note(note, name="PeterNeumann", public_keys=[key])
    assert not log.verify_note(note.replace("answer", "Answer"), name="PeterNeumann", public_keys=[key])
    assert not log.verify_note(note, name="SomeoneElse", public_keys=[key])
    secret = Ed25519PrivateKey.from_private_bytes(base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:])
    assert log.sign_note(NOTE_TEXT, name="PeterNeumann", sign=secret.sign, public_key=key) == note


def test_checkpoints() -> None:
    secret, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    head = log.Checkpoint("expunge.example/log", 8, ROOTS[-1])
    note = log.sign_checkpoint(head, sign=secret.sign, public_key=secret.public_key())
    assert note.startswith("expunge.example/log\n8\nXcnaeacGWamtVZy3Ad7Zoqudgjqt")
    assert log.verify_checkpoint(note, [other.public_key(), secret.public_key()]) == head
    assert log.verify_checkpoint(note, [other.public_key()]) is None
    assert log.verify_checkpoint(note.replace("\n8\n", "\n9\n"), [secret.public_key()]) is None
    assert (
        log.verify_checkpoint(note.replace("expunge.example/log\n8", "expunge.example/fork\n8"), [secret.public_key()])
        is None
    )
    witness = log.sign_note(head.text, name="witness", sign=other.sign, public_key=other.public_key())
    both = note + witness.rpartition("\n\n")[2]
    assert log.verify_checkpoint(both, [secret.public_key()]) == head
    assert log.verify_checkpoint(witness, [other.public_key()]) is None  # a witness is not the log


@pytest.mark.parametrize(
    "note",
    [
        "",
        "origin\n1\n",
        "origin\n1\nAAAA\n\n— origin AAAA\n",
        "origin\n01\n" + base64.b64encode(bytes(32)).decode() + "\n\n— origin AAAAAAAA\n",
        "origin\n-1\n" + base64.b64encode(bytes(32)).decode() + "\n\n— origin AAAAAAAA\n",
        "origin\n1\n" + base64.b64encode(bytes(31)).decode() + "\n\n— origin AAAAAAAA\n",
        "or igin\n1\n" + base64.b64encode(bytes(32)).decode() + "\n\n— origin AAAAAAAA\n",
        "origin\n1\n" + base64.b64encode(bytes(32)).decode() + "\n\norigin AAAAAAAA\n",
        "origin\n1\n" + base64.b64encode(bytes(32)).decode() + "\n\n— origin AAAAAAAA",
        "origin\n1\n" + base64.b64encode(bytes(32)).decode() + "\n\n— origin A*AAAAAA\n",
        "origin\n" + "9" * 5000 + "\n" + base64.b64encode(bytes(32)).decode() + "\n\n— origin AAAAAAAA\n",
        "x" * 200_000,
    ],
)
def test_what_is_not_a_checkpoint_is_an_error(note: str) -> None:
    with pytest.raises(log.LogError):
        log.verify_checkpoint(note, [])
