from __future__ import annotations

import os
from dataclasses import replace

import pytest

from service.erasure import workspace
from service.erasure.workspace import RunFolder, Workspace
from service.errors import RunStoppedError
from tests.service import tiny
from unlearning.errors import FileError


def test_a_file_of_the_folder_is_read_back_or_not_there(settings):
    folder = RunFolder(settings, "run")
    assert folder.read("plan") is None
    folder.write("plan", {"forget": [1, 2]})
    folder.write("plan", {"forget": [3]})
    assert RunFolder(settings, "run").read("plan") == {"forget": [3]}


def test_what_a_killed_write_left_is_no_file(settings):
    folder = RunFolder(settings, "run")
    (folder.path / "plan.partial").write_text('{"forget": [1')
    assert folder.read("plan") is None
    folder.write("plan", {"forget": []})
    assert folder.read("plan") == {"forget": []}


def test_destroying_overwrites_every_file_and_leaves_no_folder(settings, tmp_path):
    folder = RunFolder(settings, "run")
    (folder.unlearned() / "bank").mkdir(parents=True)
    (folder.unlearned() / "bank" / "0.row").write_bytes(b"margins")
    folder.weights(0).write_bytes(b"weights" * 100)
    folder.write("plan", {"forget": [1]})
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    for number, path in enumerate(files):
        os.link(path, tmp_path / f"second-name-{number}")  # looks at the same bytes once the first name is gone
    sizes = [path.stat().st_size for path in files]
    folder.destroy()
    assert not folder.path.exists()
    assert [(tmp_path / f"second-name-{i}").read_bytes() for i in range(3)] == [bytes(size) for size in sizes]
    folder.destroy()


def test_destroying_follows_no_link(settings, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    folder = RunFolder(settings, "run")
    (folder.path / "step-0.safetensors").symlink_to(precious)
    with pytest.raises(FileError, match="symbolic link"):
        folder.destroy()
    assert precious.read_bytes() == b"precious"


def test_the_parts_are_read_when_they_are_asked_for_and_once(tiny_context, monkeypatch):
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0])
    tiny.workspace(tiny_context, run_id).make_plan()
    read = []
    monkeypatch.setattr(workspace, "load_run", lambda *asked: read.append(asked) or tiny.run_of(*asked))
    work = tiny.workspace(tiny_context, run_id)
    assert work.plan is work.plan
    assert work.folder is work.folder
    assert read == []
    assert work.run is work.run
    assert work.policy is tiny.POLICY
    assert read == [(tiny_context, run_id)]


def test_no_other_policy_than_the_one_logged_before_the_run_is_given(tiny_context):
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0])
    for policy in (replace(tiny.POLICY, retrain_attempts=1), None):
        with pytest.raises(RunStoppedError, match="policy that was logged before this run"):
            Workspace(tiny_context, run_id, policy).policy  # noqa: B018


def test_a_plan_that_is_made_anew_is_the_one_that_is_there_and_leaves_nothing_of_the_old_one(tiny_context):
    person, leaving = tiny.people(tiny_context)[:2]
    work = tiny.workspace(tiny_context, tiny.claim_run(tiny_context, person))
    before = work.make_plan()
    work.folder.weights(0).write_bytes(b"weights")
    tiny.file(tiny_context, leaving)
    work.plan_anew()
    assert work.plan != before
    assert tiny.workspace(tiny_context, work.run_id).plan == work.plan
    assert not work.folder.weights(0).exists()
