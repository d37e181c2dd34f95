"""Packs and removals of one folder: no pack is made beside a removal, and who reads one is told."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from tests.unlearning.faces.folders import TABLE
from tests.waiting import PATIENCE_SECONDS, join, wait_until
from unlearning import files
from unlearning.errors import FacesError
from unlearning.faces import pack, remove_subjects
from unlearning.faces.exclusion import REMOVALS, last_removal, opening
from unlearning.faces.packing import find_packs

SIZE = (6, 5)


@pytest.fixture
def asks(monkeypatch):
    """Set when somebody asks for the folder for himself."""
    asked, lock = threading.Event(), files.lock

    def watched(path, *, exclusive):
        if exclusive:
            asked.set()
        return lock(path, exclusive=exclusive)

    monkeypatch.setattr(files, "lock", watched)
    return asked


def test_a_removal_waits_for_a_pack_that_is_being_made(make_folder, asks):
    folder, removal = make_folder(), None

    def progress(done, total):
        nonlocal removal
        if done == total:  # everybody's pixels are in the pack, which has no name yet
            removal = threading.Thread(target=remove_subjects, args=(folder, ["ann"]), daemon=True)
            removal.start()
            wait_until(lambda: asks.is_set() or not removal.is_alive(), "the removal to ask for the folder")

    faces = pack(folder, size=SIZE, channels=1, progress=progress)
    join(removal)
    assert list(find_packs(folder)) == []
    assert not faces.is_intact()


def test_a_pack_waits_for_a_removal_and_is_of_those_who_stay(make_folder):
    folder, made, packing = make_folder(), [], None

    def reached(point):
        nonlocal packing
        if point == "pack destroyed":  # all images are still there, and the table names them
            packing = threading.Thread(target=lambda: made.append(pack(folder, size=SIZE, channels=1)), daemon=True)
            packing.start()
            wait_until(lambda: is_waiting(folder) or not packing.is_alive(), "the packing to wait for the folder")

    pack(folder, size=SIZE, channels=1)
    remove_subjects(folder, ["ann"], reached=reached)
    join(packing)
    assert set(made[0].subjects) == {"bob", "cleo"}
    assert made[0].is_intact()
    assert [path.parent.name for path in find_packs(folder)] == [".packed"]


def is_waiting(folder):
    """Whether the kernel lets somebody wait for the folder's lock."""
    inode = (folder / REMOVALS).stat().st_ino
    with open("/proc/locks") as locks:
        return any(" -> FLOCK" in line and f":{inode} " in line for line in locks)


def test_packs_do_not_wait_for_each_other(make_folder):
    folder = make_folder()
    with opening(folder), opening(folder):
        assert len(pack(folder, size=SIZE, channels=1)) == len(TABLE)


def test_a_reader_does_not_hold_a_removal_up_and_is_told(make_folder):
    folder = make_folder()
    faces = pack(folder, size=SIZE, channels=1)
    assert faces.is_intact()
    remove_subjects(folder, ["nobody"])  # overwrites the packs all the same
    assert not faces.is_intact()
    again = pack(folder, size=SIZE, channels=1)
    assert again.is_intact()
    remove_subjects(folder, ["ann"])
    assert not again.is_intact()


def test_a_folder_taken_away_is_not_the_one_that_was_opened(make_folder):
    folder = make_folder()
    faces = pack(folder, size=SIZE, channels=1)
    folder.rename(folder.with_name("elsewhere"))
    assert not faces.is_intact()


CHILD = """
import os, signal, sys
from pathlib import Path
from unlearning.faces import remove_subjects

def die(point):
    if point == "overwritten":
        os.kill(os.getpid(), signal.SIGKILL)

remove_subjects(Path(sys.argv[1]), ["ann"], reached=die)
"""


def test_a_removal_that_was_killed_tells_readers_and_frees_the_folder(make_folder):
    folder = make_folder()
    faces = pack(folder, size=SIZE, channels=1)
    child = subprocess.run([sys.executable, "-c", CHILD, str(folder)], check=False, timeout=PATIENCE_SECONDS)
    assert child.returncode == -9
    assert next(find_packs(folder)).is_dir()  # one file of it was overwritten, the pack has its name
    assert not faces.is_intact()
    assert pack(folder, size=SIZE, channels=1).is_intact()  # nobody is half removed yet: made anew
    remove_subjects(folder, ["ann"])
    assert list(find_packs(folder)) == []


def test_words_are_of_one_length_and_name_nobody(make_folder):
    folder, words = make_folder(), set()
    with opening(folder) as word:
        words.add(word)
    for person in ("ann", "bob"):
        remove_subjects(folder, [person])
        words.add(last_removal(folder))
    assert sorted(map(len, words)) == [0, 32, 32]


def test_a_folder_that_cannot_be_locked_is_said_to_be_so(make_folder):
    folder = make_folder()
    (folder / REMOVALS).mkdir()
    for call in (lambda: pack(folder, size=SIZE, channels=1), lambda: remove_subjects(folder, ["ann"])):
        with pytest.raises(FacesError, match="Expected to write in"):
            call()
