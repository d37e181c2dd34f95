"""The signing key, the ones before it, and going from one to the next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from audit.proof.envelope import key_id, read_public_keys
from service.errors import StartupError
from service.keys.signing import SigningKeys

NOW = datetime(2126, 11, 23, 12, 0, tzinfo=UTC)  # after the first key, which is made now


def ids(keys: SigningKeys) -> list[str]:
    return [key.key_id for key in keys.published()]


def rotated(keys: SigningKeys, days: int = 1) -> str:
    new = Ed25519PrivateKey.generate()
    keys.rotate(new, now=NOW + timedelta(days=days))
    return key_id(new.public_key())


def test_a_rotation_keeps_the_earlier_keys_with_their_times(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    first, made_at = keys.current().published.key_id, keys.current().valid_from
    second, third = rotated(keys, 1), rotated(keys, 2)
    assert ids(keys) == [third, second, first]
    times = [(key.valid_from, key.valid_until) for key in keys.published()]
    assert times == [
        (NOW + timedelta(days=2), None),
        (NOW + timedelta(days=1), NOW + timedelta(days=2)),
        (made_at, NOW + timedelta(days=1)),
    ]
    assert key_id(read_public_keys((tmp_path / "signing.pub").read_text())[0]) == third
    assert keys.expires_at(30) == NOW + timedelta(days=32)


def test_whoever_opened_the_keys_before_signs_with_the_new_one(tmp_path: Path) -> None:
    running, message = SigningKeys(tmp_path), b"what is signed next"
    before = running.current().key
    new = rotated(SigningKeys(tmp_path))
    key = running.current().key
    assert key_id(key.public_key()) == new
    key.public_key().verify(key.sign(message), message)
    assert running.current().key is key  # not read again
    assert before is not key


def test_nothing_of_the_old_private_key_stays(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    old = (tmp_path / "signing.pem").read_bytes()
    linked = (tmp_path / "signing.pem").open("rb")
    rotated(keys)
    with linked:
        assert linked.read() == bytes(len(old))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in files if b"PRIVATE" in path.read_bytes()) == ["signing.pem"]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


@pytest.mark.parametrize("die_at", ["retired", "written", "linked"])
def test_a_kill_before_the_new_key_is_in_place_changes_nothing(tmp_path: Path, die_at: str) -> None:
    keys = SigningKeys(tmp_path)
    first = keys.current().published.key_id

    def killed(point: str) -> None:
        if point == die_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keys.rotate(Ed25519PrivateKey.generate(), now=NOW, reached=killed)
    assert ids(SigningKeys(tmp_path)) == [first]
    second = rotated(keys)
    assert ids(keys) == [second, first]


def test_a_kill_after_it_mends_the_public_file_at_the_next_start(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    stale = (tmp_path / "signing.pub").read_bytes()
    new = rotated(keys)
    (tmp_path / "signing.pub").write_bytes(stale)
    SigningKeys(tmp_path)
    assert key_id(read_public_keys((tmp_path / "signing.pub").read_text())[0]) == new


def test_a_key_without_a_date_is_as_old_as_its_file(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    path = tmp_path / "signing.pem"
    path.write_bytes(b"".join(path.read_bytes().partition(b"-----BEGIN")[1:]))
    assert abs(SigningKeys(tmp_path).current().valid_from - datetime.now(UTC)) < timedelta(minutes=1)
    assert ids(SigningKeys(tmp_path)) == ids(keys)
    assert isinstance(load_pem_private_key(path.read_bytes(), None), Ed25519PrivateKey)


def test_a_retired_key_without_its_dates_is_refused(tmp_path: Path) -> None:
    keys = SigningKeys(tmp_path)
    rotated(keys)
    (path,) = (tmp_path / "retired").glob("*.pub")
    path.write_bytes(b"".join(path.read_bytes().partition(b"-----BEGIN")[1:]))
    with pytest.raises(StartupError, match="valid-until"):
        keys.published()


def test_a_key_others_can_read_is_refused(tmp_path: Path) -> None:
    SigningKeys(tmp_path)
    (tmp_path / "signing.pem").chmod(0o644)
    with pytest.raises(StartupError, match="chmod 600"):
        SigningKeys(tmp_path)


def test_printing_shows_no_secret(tmp_path: Path) -> None:
    assert repr(SigningKeys(tmp_path)) == "SigningKeys()"
