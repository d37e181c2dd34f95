"""Secrets of the service."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.errors import StartupError
from service.keys.keyring import Keyring, commitment
from tests.waiting import at_once


def test_keys_are_made_once_and_read_again(tmp_path: Path) -> None:
    first, second = Keyring.open(tmp_path / "keys"), Keyring.open(tmp_path / "keys")
    assert first.subject_hash("s31") == second.subject_hash("s31")
    assert first.public_key == second.public_key
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {0o600}


def test_processes_that_start_at_once_agree(tmp_path: Path) -> None:
    rings: list[Keyring] = []
    at_once(*[lambda: rings.append(Keyring.open(tmp_path / "keys"))] * 16)
    assert len(rings) == 16
    assert len({ring.public_key.public_bytes_raw() for ring in rings}) == 1
    assert len({ring.block_hash("s31") for ring in rings}) == 1


def test_a_key_others_can_read_is_refused(tmp_path: Path) -> None:
    Keyring.open(tmp_path)
    (tmp_path / "tombstone.key").chmod(0o644)
    with pytest.raises(StartupError, match="chmod 600"):
        Keyring.open(tmp_path)


def test_a_damaged_key_is_refused(tmp_path: Path) -> None:
    Keyring.open(tmp_path)
    (tmp_path / "signing.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----")
    with pytest.raises(StartupError, match="Ed25519 private key"):
        Keyring.open(tmp_path)


def test_printing_shows_no_secret(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    assert repr(ring) == "Keyring()"


def test_a_short_key_is_refused(tmp_path: Path) -> None:
    Keyring.open(tmp_path)
    (tmp_path / "rerun.key").write_bytes(b"short")
    with pytest.raises(StartupError, match="Expected 32 bytes"):
        Keyring.open(tmp_path)


def test_hashes_are_keyed_apart(tmp_path: Path) -> None:
    ring = Keyring.open(tmp_path)
    assert ring.subject_hash("s31") != ring.block_hash("s31")
    assert commitment(b"a", "s31") != commitment(b"b", "s31")
