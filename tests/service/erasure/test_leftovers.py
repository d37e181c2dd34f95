"""What a killed process left is destroyed, what a living one uses stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from service.erasure import leftovers
from service.erasure.completion import purge
from service.erasure.workspace import RunFolder
from service.launch import environment
from service.requests.runs import give_up
from service.worker import claim
from tests.service import tiny
from unlearning import files

COMMANDS = {"training": ["train", "--seed", "5"], "rotation": ["keys", "rotate-signing"]}


def die_at(context, point):
    """A command that is killed at the point."""
    command = [sys.executable, "-m", "service.cli", *COMMANDS[point.partition(".")[0]]]
    env = {**environment(context.settings), "EXPUNGE_FAIL_AT": point}
    done = subprocess.run(command, env=env, capture_output=True, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def hidden(folder):
    """Files with a name that begins with a dot, or in such a folder, but for the data folder's."""
    names = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [name for name in names if name.parts[0] != "data" and any(part.startswith(".") for part in name.parts)]


def test_weights_of_a_training_that_was_killed_are_destroyed(tiny_context, tmp_path):
    die_at(tiny_context, "training.saved")
    (weights,) = tiny_context.settings.home.glob(".training-*/model.safetensors")
    os.link(weights, tmp_path / "seen")
    assert leftovers.sweep(tiny_context) == 1
    assert hidden(tiny_context.settings.home) == []
    assert not (tmp_path / "seen").read_bytes().strip(b"\0")


@pytest.mark.parametrize("point", ["rotation.written", "rotation.linked", "rotation.replaced"])
def test_private_keys_of_a_rotation_that_was_killed_are_destroyed(tiny_context, point):
    folder = tiny_context.settings.keys_folder
    before = (folder / "signing.pem").read_bytes()
    die_at(tiny_context, point)
    signs = (folder / "signing.pem").read_bytes()
    left = {path.read_bytes() for path in folder.glob(".signing.pem.*")} | {before}
    assert leftovers.sweep(tiny_context)
    assert hidden(folder) == []
    kept = [path.read_bytes() for path in tiny_context.settings.home.rglob("*") if path.is_file()]
    assert signs in kept
    assert (signs == before) is (point != "rotation.replaced")
    assert not any(content in kept for content in left - {signs})
    assert (folder / "signing.pem").read_bytes() == signs


def test_what_is_in_use_stays(tiny_context):
    settings = tiny_context.settings
    with files.scratch(settings.home, ".training-") as training, files.scratch(settings.packed_folder, ".packing-"):
        (training / "model.safetensors").write_bytes(b"weights")
        assert leftovers.sweep(tiny_context) == 0
        assert (training / "model.safetensors").exists()


def test_operators_files_in_the_data_folder_stay(tiny_context):
    mine = tiny_context.settings.data_folder / ".draft.0123456789abcdef.old"
    mine.write_text("s31")
    leftovers.sweep(tiny_context)
    assert mine.exists()


def test_working_files_of_a_run_that_ended_go_and_of_an_open_one_stay(tiny_context):
    tiny.file(tiny_context, tiny.people(tiny_context)[0])
    run_id = claim(tiny_context, tiny.POLICY)
    folder = RunFolder(tiny_context.settings, run_id)
    folder.write("plan", {"forget": [1]})
    (folder.path / ".step-0.safetensors.0123456789abcdef.tmp").write_bytes(b"weights")
    assert leftovers.sweep(tiny_context) == 1
    assert folder.read("plan") is not None
    give_up(tiny_context, run_id, "killed before it could tidy")
    assert leftovers.sweep(tiny_context) == 1
    assert not folder.path.exists()


def test_a_purge_sweeps_before_anything_is_completed(tiny_context):
    settings = tiny_context.settings
    run_id = tiny.deploy_run(tiny_context, tiny.people(tiny_context)[0])
    for folder in (settings.home / ".training-dead", settings.packed_folder / ".packing-dead"):
        folder.mkdir(parents=True)
        (folder / "images.npy").write_bytes(b"somebody's pixels")
    (settings.keys_folder / ".signing.pem.0123456789abcdef.old").write_bytes(b"a private key")
    purge(tiny.workspace(tiny_context, run_id))
    assert hidden(settings.home) == []
