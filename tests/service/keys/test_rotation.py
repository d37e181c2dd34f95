"""From one signing key to the next: what was signed before still verifies, what comes after is the new key's."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from audit.proof import log
from audit.proof.certificate import openssl_recipe, verify
from audit.proof.envelope import key_id, read_published_keys
from service.api import proofs
from service.cli import app
from service.erasure.completion import complete, purge
from service.models import registry
from service.settings import Settings
from tests.service import tiny
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def erased(tiny_context, tmp_path):
    """A completed erasure and its certificate's file."""
    run_id = tiny.deploy_run(tiny_context, tiny.people(tiny_context)[0])
    purge(tiny.workspace(tiny_context, run_id))
    complete(tiny.workspace(tiny_context, run_id))
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(tiny.certificates(tiny_context)[-1].envelope, indent=2))
    return path


@pytest.fixture
def expunge(tiny_context, monkeypatch):
    """The program on the tiny home."""
    monkeypatch.setenv("EXPUNGE_HOME", str(tiny_context.settings.home))

    def run(*words: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return run


def test_old_certificates_verify_after_a_rotation(tiny_context, erased, expunge, tmp_path):
    old, keys_folder = tiny_context.keyring.public_key, tiny_context.settings.keys_folder
    (tmp_path / "old.pub").write_bytes((keys_folder / "signing.pub").read_bytes())
    assert expunge("keys", "rotate-signing")[0] == 0
    assert expunge("verify", erased)[0] == 0
    assert expunge("verify", erased, "--home")[0] == 0
    assert expunge("verify", erased, "--key", tmp_path / "old.pub")[0] == 0
    assert expunge("verify", erased, "--key", keys_folder / "signing.pub", "--key", tmp_path / "old.pub")[0] == 0
    assert expunge("verify", erased, "--key", keys_folder / "signing.pub")[0] == 1
    published = tmp_path / "keys.json"
    published.write_text(proofs.public_keys(tiny_context).model_dump_json())
    assert expunge("verify", erased, "--key", published)[0] == 0
    checked = subprocess.run(
        ["bash", "-c", openssl_recipe(erased)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert "Signature Verified Successfully" in checked.stdout, checked.stderr
    assert key_id(old) in checked.stdout


def test_a_service_that_runs_signs_with_the_new_key_at_once(tiny_context, erased, expunge):
    """`tiny_context` was opened before the rotation, as a running process's is."""
    before = tiny_context.keyring.public_key
    assert expunge("keys", "rotate-signing")[0] == 0
    after = tiny_context.keyring.public_key
    assert key_id(after) != key_id(before)
    head = proofs.checkpoint(tiny_context)
    assert log.verify_checkpoint(head, [after]) is not None
    assert log.verify_checkpoint(head, [before]) is None
    run_id = tiny.deploy_run(tiny_context, tiny.people(tiny_context)[0])
    purge(tiny.workspace(tiny_context, run_id))
    complete(tiny.workspace(tiny_context, run_id))
    certificate = tiny.certificates(tiny_context)[-1].envelope
    assert verify(certificate, public_key=after).erased
    assert not verify(certificate, public_key=before).valid


def test_weights_signed_before_still_load(tiny_context, erased, expunge):
    (active,) = [row for row in registry.versions(tiny_context) if row.state == "active"]
    for _ in range(2):
        assert expunge("keys", "rotate-signing")[0] == 0
    assert registry.load_checked(tiny_context, active.digest).digest == active.digest


def test_keys_are_published_with_their_times(tiny_context, erased, expunge, clock):
    first = tiny_context.keyring.public_key
    assert expunge("keys", "rotate-signing")[0] == 0
    now, before = proofs.public_keys(tiny_context).keys
    assert before.key_id == key_id(first)
    assert before.valid_until == now.valid_from
    assert (now.valid_until, before.rotate_by) == (None, None)
    assert (now.rotate_by - now.valid_from).days == tiny_context.settings.signing_key_days
    (entry,) = [json.loads(leaf.entry) for leaf in tiny.log_entries(tiny_context) if leaf.kind == "key"]
    assert (entry["retired"], entry["signing"]) == (before.key_id, now.key_id)


def test_a_certificate_signed_while_the_clock_was_ahead_verifies_after_a_rotation(
    tiny_context, expunge, clock, tmp_path
):
    """The clock is set back between the two: by its date the certificate is later than the rotation."""
    clock.advance(days=100 * 365)
    run_id = tiny.deploy_run(tiny_context, tiny.people(tiny_context)[0])
    purge(tiny.workspace(tiny_context, run_id))
    complete(tiny.workspace(tiny_context, run_id))
    path = tmp_path / "certificate.json"
    path.write_text(json.dumps(tiny.certificates(tiny_context)[-1].envelope))
    assert expunge("keys", "rotate-signing")[0] == 0
    code, said = expunge("verify", path, "--home")
    assert code == 0, said


def test_what_a_retired_key_signs_later_is_refused_where_its_end_is_known(tiny_context, erased, expunge, tmp_path):
    """A stolen old key: the file verifies by the key alone, but not by the keys with their times."""
    content = json.loads(erased.read_text())
    listed = json.loads(proofs.public_keys(tiny_context).model_dump_json())
    listed["keys"][0]["valid_until"] = "2026-01-01T00:00:00Z"
    keys, retired_at = read_published_keys(json.dumps(listed).encode())
    assert verify(content, public_key=keys).valid
    assert not verify(content, public_key=keys, retired_at=retired_at).valid


def test_verify_makes_no_keys_where_there_are_none(tmp_path, erased, monkeypatch):
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path / "nothing"))
    result = CliRunner().invoke(app, ["verify", str(erased), "--home"])
    assert result.exit_code == 2
    assert "EXPUNGE_HOME" in result.output
    assert not Settings().keys_folder.exists()


def test_an_open_run_is_made_again_by_hand(tiny_context, expunge, monkeypatch):
    context = replace(tiny_context, settings=tiny.settings_of(tiny_context.settings.home))
    monkeypatch.setenv("EXPUNGE_RECIPE", context.settings.recipe)
    run_id = tiny.plan_run(context, tiny.people(context)[0])
    assert tiny.try_step(context, run_id, tiny.RETRAIN)
    status, text = expunge("rerun", run_id)
    assert status == 0, text
    assert "Equal weights." in text


def test_an_auditor_checks_the_choice_from_log_and_key(tiny_context, erased, expunge, tmp_path):
    entries = tmp_path / "log.txt"
    entries.write_text("".join(leaf.entry + "\n" for leaf in tiny.log_entries(tiny_context)))
    status, text = expunge("rerun-check", entries, "--key", tiny_context.settings.keys_folder / "rerun.key")
    assert (status, "1 completed runs; the key chooses 0" in text) == (0, True)
    (tmp_path / "other.key").write_bytes(b"o" * 32)
    status, text = expunge("rerun-check", entries, "--key", tmp_path / "other.key")
    assert (status, "another key" in text) == (1, True)
