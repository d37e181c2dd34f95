"""`expunge verify` as whoever got a certificate runs it: what is printed where, and what the exit status says."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit.proof import log
from audit.proof.envelope import public_keys_pem
from tests.audit.proof.test_certificate import GOOD, KEY, NEW_KEY, failed, issue

VALID, NOT_VALID, NOT_CHECKED = 0, 1, 2


def run(*arguments: object, encoding: str = "utf-8", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """The real program, `verify` unless it is told otherwise."""
    env = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "service.cli", "verify", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, env=env, timeout=120, check=False, **pipes)


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "certificate.json"
    path.write_text(GOOD.text, encoding="utf-8")
    return path


@pytest.fixture
def forged(tmp_path: Path) -> Path:
    content = GOOD.content
    content["log"] = issue(failed()).content["log"]
    path = tmp_path / "forged.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "latin-1:strict", "cp437", "utf-16"])
def test_whatever_the_terminal_can_show(good: Path, forged: Path, encoding: str) -> None:
    name = encoding.partition(":")[0]
    for path, status, verdict in (
        (good, VALID, "Verdict: PASSED"), (forged, NOT_VALID, "This certificate is NOT valid."),
    ):  # fmt: skip
        result = run(path, encoding=encoding)
        assert (result.returncode, result.stderr) == (status, b"")
        text = result.stdout.decode(name)
        assert text.splitlines()[0] == verdict
        assert "signature: The certificate is unaltered" in text


def test_marks_are_ascii_where_others_cannot_be_shown(good: Path) -> None:
    assert "✓ signature" in run(good).stdout.decode()
    assert "[ok] signature" in run(good, encoding="ascii").stdout.decode("ascii")


def test_what_cannot_be_written_was_not_checked(good: Path, forged: Path, tmp_path: Path) -> None:
    for path in (good, forged):
        with Path("/dev/full").open("wb") as full:
            result = run(path, stdout=full)
        assert result.returncode == NOT_CHECKED
        assert b"Traceback" not in result.stderr
        assert b"could not be written" in result.stderr
        reader, writer = os.pipe()
        os.close(reader)
        result = run(path, stdout=writer)
        os.close(writer)
        assert result.returncode == NOT_CHECKED
        assert b"Traceback" not in result.stderr
    command = f'"{sys.executable}" -m service.cli verify "{good}" >&-'
    assert subprocess.run(["sh", "-c", command], timeout=120, check=False).returncode == NOT_CHECKED
    assert tmp_path.exists()


def test_nor_what_cannot_be_read(good: Path, tmp_path: Path) -> None:
    absent, rubbish = tmp_path / "absent", tmp_path / "rubbish"
    rubbish.write_bytes(b"\xff nonsense")
    for arguments in (
        (absent,), (tmp_path,), (good, "--key", absent), (good, "--key", rubbish), (good, "--weights", absent),
        (good, "--log", absent), (good, "--since", absent), (good, "--since", rubbish), (good, "--what"), (),
    ):  # fmt: skip
        result = run(*arguments)
        assert result.returncode == NOT_CHECKED, (arguments, result.stdout)
        assert b"Traceback" not in result.stderr
        assert result.stderr
    assert run(rubbish).returncode == NOT_VALID  # it was read, and is no certificate
    with Path("/dev/full").open("wb") as full:
        assert run(absent, stderr=full).returncode == NOT_CHECKED


def test_a_fault_of_ours_is_not_a_forged_certificate(good: Path) -> None:
    program = (
        "import sys, audit.proof.certificate as c\n"
        "def crash(*a, **k): raise RuntimeError('bug')\n"
        "c.verify = crash\n"
        f"sys.argv = ['expunge', 'verify', {str(good)!r}]\n"
        "from service.cli import main\nmain()"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert result.returncode == NOT_CHECKED
    assert b"RuntimeError: bug" in result.stderr


def test_nothing_heavy_is_imported(good: Path) -> None:
    program = (
        "import sys\n"
        f"sys.argv = ['expunge', 'verify', {str(good)!r}]\n"
        "from service.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "print([name for name in ('torch', 'scipy', 'bentoml', 'fastapi', 'sqlalchemy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert result.stdout.splitlines()[-1] == b"[]", result.stderr


class TestSince:
    """A checkpoint that was kept, and whether the log of the certificate grew from it."""

    LEAVES = tuple(log.leaf_hash(entry) for entry in GOOD.entries)

    @pytest.fixture
    def keys(self, tmp_path: Path) -> Path:
        path = tmp_path / "keys.pem"
        path.write_text(public_keys_pem([NEW_KEY.public_key(), KEY.public_key()]))
        return path

    def kept(self, tmp_path: Path, leaves: tuple[bytes, ...], *, key: Any = KEY, origin: str = "") -> Path:
        head = log.Checkpoint(origin or "expunge.example/log", len(leaves), log.root(leaves))
        path = tmp_path / "checkpoint.txt"
        path.write_text(log.sign_checkpoint(head, sign=key.sign, public_key=key.public_key()), encoding="utf-8")
        return path

    def proof(self, tmp_path: Path, first: int, leaves: tuple[bytes, ...]) -> Path:
        """As `GET /v1/log/consistency` answers."""
        path = tmp_path / "consistency.json"
        hashes = [base64.b64encode(node).decode() for node in log.consistency_proof(first, leaves)]
        path.write_text(json.dumps({"tree_size": len(leaves), "hashes": hashes, "checkpoint": "…"}))
        return path

    @pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 6])
    def test_it_grew(self, good: Path, keys: Path, tmp_path: Path, size: int) -> None:
        since, proof = self.kept(tmp_path, self.LEAVES[:size]), self.proof(tmp_path, size, self.LEAVES)
        result = run(good, "--key", keys, "--since", since, "--consistency", proof)
        assert result.returncode == VALID, result.stdout
        assert b"growth: " in result.stdout

    def test_the_kept_one_may_be_the_later(self, good: Path, keys: Path, tmp_path: Path) -> None:
        later = (*self.LEAVES, log.leaf_hash(b"more"), log.leaf_hash(b"and more"))
        since, proof = self.kept(tmp_path, later, key=NEW_KEY), self.proof(tmp_path, 6, later)
        assert run(good, "--key", keys, "--since", since, "--consistency", proof).returncode == VALID

    def test_the_whole_log_shows_it_too(self, good: Path, keys: Path, tmp_path: Path) -> None:
        entries = tmp_path / "log.txt"
        entries.write_bytes(b"\n".join(GOOD.entries) + b"\n")
        since = self.kept(tmp_path, self.LEAVES[:3])
        assert run(good, "--key", keys, "--since", since, "--log", entries).returncode == VALID
        rewritten = self.kept(tmp_path, (log.leaf_hash(b"gone"), *self.LEAVES[1:3]))
        assert run(good, "--key", keys, "--since", rewritten, "--log", entries).returncode == NOT_VALID

    def test_it_was_rewritten(self, good: Path, keys: Path, tmp_path: Path) -> None:
        gone = (log.leaf_hash(b"gone"), *self.LEAVES[1:])
        for leaves in (gone, gone[:3]):
            since, proof = self.kept(tmp_path, leaves), self.proof(tmp_path, len(leaves), self.LEAVES)
            result = run(good, "--key", keys, "--since", since, "--consistency", proof)
            assert result.returncode == NOT_VALID
            assert b"rewritten" in result.stdout

    def test_another_log_s_or_a_stranger_s(self, good: Path, keys: Path, tmp_path: Path) -> None:
        since, proof = self.kept(tmp_path, self.LEAVES[:3], origin="other"), self.proof(tmp_path, 3, self.LEAVES)
        assert run(good, "--key", keys, "--since", since, "--consistency", proof).returncode == NOT_VALID
        self.kept(tmp_path, self.LEAVES[:3], key=NEW_KEY)
        keys.write_text(public_keys_pem([KEY.public_key()]))
        result = run(good, "--key", keys, "--since", since, "--consistency", proof)
        assert (result.returncode, b"not signed" in result.stdout) == (NOT_VALID, True)

    def test_without_a_proof_it_was_not_checked(self, good: Path, keys: Path, tmp_path: Path) -> None:
        result = run(good, "--key", keys, "--since", self.kept(tmp_path, self.LEAVES[:3]))
        assert result.returncode == NOT_CHECKED
        assert b"/v1/log/consistency?first_size=3&second_size=6" in result.stderr
