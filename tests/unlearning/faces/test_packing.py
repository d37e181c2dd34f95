"""Packed faces: the same pixels as decoding one by one, keyed by content, safe from damage and races."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from hashlib import sha256

import numpy as np
import pytest

from tests.unlearning.faces.folders import TABLE, image_file, write_table
from tests.waiting import PATIENCE_SECONDS, at_once
from unlearning import files
from unlearning.errors import FacesError
from unlearning.faces import packing
from unlearning.faces.arrays import Faces
from unlearning.faces.decoding import decode
from unlearning.faces.packing import UNFINISHED, find_packs, pack

SIZE = (6, 5)


def packs(folder):
    return sorted(path.name for path in find_packs(folder))


def inode(faces):
    return os.stat(faces.images.filename).st_ino


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("workers", [None, 1, 4])
def test_packed_faces_are_the_decoded_ones(make_folder, channels, workers):
    folder = make_folder()
    faces = pack(folder, size=SIZE, channels=channels, workers=workers)
    assert isinstance(faces.images, np.memmap)
    assert faces.images.dtype == np.uint8
    assert faces.images.shape == (5, *SIZE, channels)
    for pixels, (file_name, *_) in zip(faces.images, TABLE, strict=True):
        np.testing.assert_array_equal(pixels, decode((folder / file_name).read_bytes(), size=SIZE, channels=channels))
    assert faces.classes == ("glasses", "no_glasses")
    assert faces.labels.dtype == np.int64
    assert faces.labels.tolist() == [0, 1, 1, 0, 0]
    assert faces.subjects.tolist() == ["ann", "ann", "bob", "bob", "cleo"]
    assert faces.splits.tolist() == ["train"] * 4 + ["test"]
    assert faces.people == ("ann", "bob", "cleo")
    assert len(faces) == 5


def test_many_faces_are_decoded_in_processes(make_folder, monkeypatch):
    monkeypatch.setattr(packing, "MANY", 70)
    monkeypatch.setattr(packing, "_PART", 30)
    monkeypatch.setattr(packing.os, "sched_getaffinity", lambda process: {0, 1})
    table = [(f"images/{n:03d}.png", f"p{n}", str(n % 2), "train") for n in range(70)]
    folder = make_folder(table)
    seen = []
    faces = pack(folder, size=SIZE, channels=1, progress=lambda *step: seen.append(step))
    assert seen == [(30, 70), (60, 70), (70, 70)]
    for n in range(70):
        np.testing.assert_array_equal(faces.images[n], decode(image_file(n), size=SIZE, channels=1))
    (folder / table[65][0]).write_bytes(b"no image")
    with pytest.raises(FacesError, match="Replace the file") as raised:
        pack(folder, size=SIZE, channels=1)
    assert raised.value.row == 67


def test_more_faces_than_one_task(make_folder):
    table = [(f"images/{n:03d}.png", f"p{n}", str(n % 2), "train") for n in range(70)]
    folder = make_folder(table)
    seen = []
    faces = pack(folder, size=SIZE, channels=1, progress=lambda *step: seen.append(step), workers=3)
    assert seen == [(32, 70), (64, 70), (70, 70)]
    for n in (0, 31, 32, 69):
        np.testing.assert_array_equal(faces.images[n], decode(image_file(n), size=SIZE, channels=1))


def test_a_second_load_decodes_nothing(make_folder, monkeypatch):
    folder = make_folder()
    first = pack(folder, size=SIZE, channels=1)
    monkeypatch.setattr(packing, "decode", None)
    seen = []
    again = pack(folder, size=SIZE, channels=1, progress=lambda *step: seen.append(step))
    assert inode(again) == inode(first)
    assert again.manifest_digest == first.manifest_digest
    assert seen == [(5, 5)]


def test_packs_hold_no_ids_and_cannot_be_written_through(make_folder):
    folder = make_folder()
    faces = pack(folder, size=SIZE, channels=1)
    with pytest.raises(ValueError, match="read-only"):
        faces.images[0] = 0
    (place,) = find_packs(folder)
    content = b"".join(path.read_bytes() for path in place.iterdir())
    assert not any(person in content or person.decode() in str(place) for person in (b"ann", b"bob", b"cleo"))


def test_size_channels_and_content_make_the_key(make_folder):
    folder = make_folder()
    pack(folder, size=SIZE, channels=1)
    pack(folder, size=SIZE, channels=3)
    pack(folder, size=(5, 6), channels=1)
    assert len(packs(folder)) == 3
    (folder / "images/a1.png").write_bytes(image_file(77))
    faces = pack(folder, size=SIZE, channels=1)
    assert len(packs(folder)) == 4
    np.testing.assert_array_equal(faces.images[0], decode(image_file(77), size=SIZE, channels=1))


def test_other_rules_of_decoding_make_another_pack(make_folder, monkeypatch):
    folder = make_folder()
    pack(folder, size=SIZE, channels=1)
    monkeypatch.setattr(packing, "RULES", packing.RULES + 1)
    pack(folder, size=SIZE, channels=1)
    assert len(packs(folder)) == 2


def test_the_digest_follows_every_field_and_every_file(make_folder):
    digests = {pack(make_folder(), size=SIZE, channels=1).manifest_digest}
    changes = [
        [("images/a9.png", *TABLE[0][1:]), *TABLE[1:]],
        [(TABLE[0][0], "anna", *TABLE[0][2:]), *TABLE[1:]],
        [(*TABLE[0][:2], "no_glasses", "train"), *TABLE[1:]],
        [*TABLE[:4], (*TABLE[4][:3], "validation")],
        TABLE[:4],
        TABLE[::-1],
    ]
    for number, table in enumerate(changes):
        digests.add(pack(make_folder(table, f"faces{number}"), size=SIZE, channels=1).manifest_digest)
    assert len(digests) == 1 + len(changes)
    same = pack(make_folder(name="copy"), size=SIZE, channels=3).manifest_digest
    assert same in digests


@pytest.mark.parametrize("victim", ["images.npy", "digests.npy", "pack.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_pack_is_made_anew(make_folder, victim, damage):
    folder = make_folder()
    expected = np.array(pack(folder, size=SIZE, channels=1).images)
    (place,) = find_packs(folder)
    data = (place / victim).read_bytes()
    if damage == "flip":
        (place / victim).write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "truncate":
        (place / victim).write_bytes(data[:-5])
    else:
        (place / victim).unlink()
    np.testing.assert_array_equal(pack(folder, size=SIZE, channels=1).images, expected)


def test_verification_can_be_left_out(make_folder):
    folder = make_folder()
    pack(folder, size=SIZE, channels=1)
    (place,) = find_packs(folder)
    data = (place / "images.npy").read_bytes()
    (place / "images.npy").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert pack(folder, size=SIZE, channels=1, verify=False).images[-1, -1, -1, 0] == data[-1] ^ 1


def test_a_model_s_classes_outlive_the_last_image_of_one(make_folder):
    folder = make_folder()
    write_table(folder, [*TABLE[:2], ("images/c1.png", "cleo", "hat", "test")])
    assert pack(folder, size=SIZE, channels=1).labels.tolist() == [0, 2, 1]
    write_table(folder, TABLE[:2])
    faces = pack(folder, size=SIZE, channels=1, classes=("glasses", "hat", "no_glasses"))
    assert faces.labels.tolist() == [0, 2]
    assert faces.classes == ("glasses", "hat", "no_glasses")
    with pytest.raises(FacesError, match="Expected a label out of 1") as caught:
        pack(folder, size=SIZE, channels=1, classes=("glasses",))
    assert caught.value.row == 3


def test_an_image_that_cannot_be_decoded_is_named_and_leaves_nothing(make_folder):
    folder = make_folder()
    (folder / "images/b2.png").write_bytes(b"no image")
    with pytest.raises(FacesError, match="Replace the file") as caught:
        pack(folder, size=SIZE, channels=1)
    assert caught.value.row == 5
    assert packs(folder) == []


def test_a_file_that_changes_while_packing_is_noticed(make_folder, monkeypatch):
    folder = make_folder()
    digests = packing._file_digests

    def then_change(*arguments):
        found = digests(*arguments)
        (folder / "images/b1.png").write_bytes(image_file(55))
        return found

    monkeypatch.setattr(packing, "_file_digests", then_change)
    with pytest.raises(FacesError, match="changed while it was packed"):
        pack(folder, size=SIZE, channels=1)
    assert packs(folder) == []


@pytest.mark.parametrize(("size", "channels"), [((0, 5), 1), ((5, 5), 2)])
def test_impossible_shapes(make_folder, size, channels):
    with pytest.raises(FacesError, match="Expected size of at least"):
        pack(make_folder(), size=size, channels=channels)


def test_packs_elsewhere_are_noted_once(make_folder, tmp_path):
    folder = make_folder()
    for _ in range(2):
        pack(folder, size=SIZE, channels=1, cache=tmp_path / "cache")
        pack(folder, size=SIZE, channels=3, cache=tmp_path / "cache")
    pack(folder, size=SIZE, channels=1)
    notes = (folder / ".packed/elsewhere.txt").read_text().splitlines()
    assert [json.loads(note) for note in notes] == [{"cache": str(tmp_path / "cache"), "folder": str(folder)}]
    assert [path.parent.name for path in find_packs(folder)] == [".packed", "cache", "cache"]
    shutil.rmtree(tmp_path / "cache")
    assert len(packs(folder)) == 1


def test_a_cache_that_cannot_be_made(make_folder):
    folder = make_folder()
    (folder / "file").write_text("")
    with pytest.raises(FacesError, match="Expected to write in"):
        pack(folder, size=SIZE, channels=1, cache=folder / "file" / "cache")


def test_two_packers_at_once_agree(make_folder):
    folder = make_folder()
    found = []

    def one():
        found.append(np.array(pack(folder, size=SIZE, channels=1, workers=1).images))

    at_once(*[one] * 4)
    assert len(found) == 4
    assert all(np.array_equal(found[0], other) for other in found)
    assert len(packs(folder)) == 1


@pytest.fixture
def faces():
    return Faces(
        images=np.zeros((6, 2, 2, 1), dtype=np.uint8),
        labels=np.zeros(6, dtype=np.int64),
        classes=("a", "b"),
        subject_of=np.array([0, 0, 1, 2, 2, 3], dtype=np.int32),
        people=("ann", "bob", "cleo", "dan"),
        split_of=np.array([0, 0, 0, 2, 2, 0], dtype=np.uint8),
        manifest_digest="",
    )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ({"split": "train"}, [0, 1, 2, 5]),
        ({"split": "validation"}, []),
        ({"subjects": ["ann", "cleo"]}, [0, 1, 3, 4]),
        ({"subjects": {"ann"}, "split": "test"}, []),
        ({"without": ("ann",), "split": "train"}, [2, 5]),
        ({"subjects": []}, []),
        ({"without": []}, [0, 1, 2, 3, 4, 5]),
        ({"subjects": ["nobody"]}, []),
    ],
)
def test_where(faces, choice, expected):
    positions = faces.where(**choice)
    assert positions.dtype == np.int64
    assert positions.tolist() == expected


def test_where_refuses_what_would_silently_choose_wrong(faces):
    with pytest.raises(FacesError, match="collection of user ids"):
        faces.where(without="ann")
    with pytest.raises(FacesError, match="collection of user ids"):
        faces.where(subjects="ann")
    with pytest.raises(FacesError, match="Expected split in"):
        faces.where(split="dev")


def test_train_subjects(faces):
    assert faces.train_subjects() == ("ann", "bob", "dan")


def test_digests_come_from_the_pack_and_equal_those_of_the_pixels(make_folder):
    faces = pack(make_folder(), size=SIZE, channels=1)
    in_memory = replace(faces, images=np.array(faces.images))
    rows = np.array([4, 0, 0])
    np.testing.assert_array_equal(faces.row_digests(rows), in_memory.row_digests(rows))
    for row, digest in zip(rows, faces.row_digests(rows), strict=True):
        pixels = sha256(np.ascontiguousarray(faces.images[row]).tobytes()).digest()
        assert digest.tobytes() == pixels + int(faces.labels[row]).to_bytes(8, "little")
    assert faces.row_digests(rows[:0]).shape == (0, 40)


PACKER = """
import os, signal, sys
from pathlib import Path
from unlearning.faces import pack
pack(Path(sys.argv[1]), size=(6, 5), channels=1, cache=Path(sys.argv[2]), workers=1,
     progress=lambda done, total: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_killed_packer_left_is_swept(make_folder, tmp_path):
    folder, cache = make_folder(), tmp_path / "cache"
    command = [sys.executable, "-c", PACKER, str(folder), str(cache)]
    assert subprocess.run(command, check=False, timeout=PATIENCE_SECONDS).returncode == -signal.SIGKILL
    (pixels,) = cache.glob(".packing-*/pack/images.npy")
    os.link(pixels, tmp_path / "seen")
    assert files.sweep_scratch(cache, UNFINISHED) == 1
    assert list(cache.iterdir()) == []
    assert not (tmp_path / "seen").read_bytes().strip(b"\0")
