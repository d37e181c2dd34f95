"""Destroying people's images: nothing of them stays, whenever the process is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.unlearning.faces.folders import TABLE, write_table
from tests.waiting import PATIENCE_SECONDS
from unlearning.errors import FacesError
from unlearning.faces import Held, Removal, check_folder, find_held, pack, remove_subjects
from unlearning.faces.exclusion import REMOVALS

SIZE = (6, 5)
OTHERS = [row for row in TABLE if row[1] != "ann"]


def files(folder):
    """Whatever may be about people: not the lock of removals."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != REMOVALS)
    return sorted(str(path.relative_to(folder)) for path in found)


def is_clean(folder, before):
    """Only the others' files and table are left, byte for byte, and nothing mentions the person."""
    assert files(folder) == sorted(["metadata.csv", *(row[0] for row in OTHERS)])
    for name, *_ in OTHERS:
        assert (folder / name).read_bytes() == before[name]
    assert [(row.file_name, row.user_id, row.label, row.split) for row in check_folder(folder)] == OTHERS
    assert b"ann" not in (folder / "metadata.csv").read_bytes()


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


def test_a_person_s_images_rows_and_packs_go(make_folder, tmp_path):
    folder = make_folder()
    before = contents(folder)
    pack(folder, size=SIZE, channels=1)
    pack(folder, size=SIZE, channels=3, cache=tmp_path / "cache")
    n_bytes = len(before["images/a1.png"]) + len(before["images/a2.png"])
    assert remove_subjects(folder, ["ann"]) == Removal(2, n_bytes, n_packed=2, n_copies=0, n_unnamed=0)
    assert list((tmp_path / "cache").iterdir()) == []
    (folder / ".packed/elsewhere.txt").unlink()
    is_clean(folder, before)
    faces = pack(folder, size=SIZE, channels=1)
    assert set(faces.subjects) == {"bob", "cleo"}


def test_packs_beside_a_folder_go_after_both_were_moved(make_folder, tmp_path):
    (tmp_path / "home").mkdir()
    pack(make_folder(name="home/faces"), size=SIZE, channels=1, cache=tmp_path / "home" / "packed")
    home = (tmp_path / "home").rename(tmp_path / "moved")
    pack(home / "faces", size=SIZE, channels=1, cache=home / "packed")  # it is there: nothing is made
    assert remove_subjects(home / "faces", ["ann"]).n_packed == 1
    assert list((home / "packed").iterdir()) == []


def test_packs_beside_a_folder_go_where_only_the_folder_was_moved(make_folder, tmp_path):
    pack(make_folder(name="faces"), size=SIZE, channels=1, cache=tmp_path / "packed")
    folder = (tmp_path / "faces").rename(tmp_path / "moved")
    assert remove_subjects(folder, ["ann"]).n_packed == 1
    assert list((tmp_path / "packed").iterdir()) == []


def test_packs_in_a_cache_that_is_named_go_whatever_the_folder_recorded(make_folder, tmp_path):
    folder = make_folder(name="home/faces")
    pack(folder, size=SIZE, channels=1, cache=tmp_path / "home" / "packed")
    home = (tmp_path / "home").rename(tmp_path / "moved")
    assert remove_subjects(home / "faces", ["ann"], cache=home / "packed").n_packed == 1
    assert list((home / "packed").iterdir()) == []


def test_a_copy_s_removal_leaves_the_packs_of_the_folder_it_was_copied_from(make_folder, tmp_path):
    """Whoever trains there would learn from zeros, and find the token of removals unchanged."""
    faces = pack(make_folder(name="home/faces"), size=SIZE, channels=1, cache=tmp_path / "home" / "packed")
    before = np.array(faces.images)
    copy = Path(shutil.copytree(tmp_path / "home", tmp_path / "copy"))
    pack(copy / "faces", size=SIZE, channels=1, cache=copy / "packed")
    assert remove_subjects(copy / "faces", ["ann"]).n_packed == 1
    assert list((copy / "packed").iterdir()) == []
    assert faces.is_intact()
    np.testing.assert_array_equal(faces.images, before)


def test_bytes_are_overwritten_before_they_are_unlinked(make_folder):
    folder = make_folder()
    faces = pack(folder, size=SIZE, channels=1)
    watched = {name: (folder / name).open("rb") for name in ("images/a1.png", "metadata.csv")}
    lengths = {name: os.fstat(file.fileno()).st_size for name, file in watched.items()}
    remove_subjects(folder, {"ann"})
    for name, file in watched.items():
        with file:
            assert file.read() == bytes(lengths[name])
    assert not np.any(faces.images)


def test_again_and_unknown_people_are_no_error(make_folder):
    folder = make_folder()
    remove_subjects(folder, ["ann"])
    after = contents(folder)
    assert remove_subjects(folder, ["ann"]) == Removal(0, 0, 0, 0, 0)
    assert remove_subjects(folder, ["nobody", "images"]) == Removal(0, 0, 0, 0, 0)
    assert contents(folder) == after


def test_several_people_and_everybody(make_folder):
    folder = make_folder()
    assert remove_subjects(folder, ["ann", "cleo"]).n_images == 3
    assert remove_subjects(folder, ["bob"]).n_images == 2
    assert (folder / "metadata.csv").read_text() == "file_name,user_id,label,split\n"
    assert files(folder) == ["metadata.csv"]


def test_a_folder_that_bears_the_person_s_name_goes_too(make_folder):
    table = [(f"by_person/{row[1]}/{n}.png", *row[1:]) for n, row in enumerate(TABLE)]
    folder = make_folder(table)
    remove_subjects(folder, ["ann"])
    assert sorted(path.name for path in (folder / "by_person").iterdir()) == ["bob", "cleo"]


def test_fields_with_commas_and_quotes_survive_for_the_others(make_folder):
    folder = make_folder()
    write_table(folder, [*TABLE[:2], ("images/b1.png", '"bob, ""b"""', "no_glasses", "train")])
    remove_subjects(folder, ["ann"])
    assert (folder / "metadata.csv").read_text().splitlines()[1] == 'images/b1.png,"bob, ""b""",no_glasses,train'


def test_a_folder_that_breaks_rules_between_rows_can_be_erased_from(make_folder):
    folder = make_folder()
    write_table(folder, [*TABLE, ("images/gone.png", "bob", "glasses", "test")])
    assert remove_subjects(folder, ["ann"]).n_images == 2
    assert remove_subjects(folder, ["bob"]).n_images == 3


def test_a_packer_that_was_killed_leaves_nothing_an_erasure_misses(make_folder):
    folder = make_folder()
    left = folder / ".packed/.packing-1234"
    left.mkdir(parents=True)
    (left / "images.npy").write_bytes(b"someone's pixels")
    assert remove_subjects(folder, ["ann"]).n_packed == 1
    assert not left.exists()


def test_one_user_id_as_a_string_is_refused(make_folder):
    folder = make_folder()
    with pytest.raises(FacesError, match="collection of user ids"):
        remove_subjects(folder, "ann")


def test_a_link_in_place_of_an_image_is_not_followed(make_folder, tmp_path):
    folder = make_folder()
    (tmp_path / "precious.png").write_bytes(b"precious")
    (folder / "images/a1.png").unlink()
    (folder / "images/a1.png").symlink_to(tmp_path / "precious.png")
    with pytest.raises(FacesError, match="symbolic link") as caught:
        remove_subjects(folder, ["ann"])
    assert caught.value.row == 2
    assert (tmp_path / "precious.png").read_bytes() == b"precious"


def test_what_is_held_of_a_subject_is_found_and_left_as_it_is(make_folder, tmp_path):
    folder = make_folder()
    pack(folder, size=SIZE, channels=1)
    image = (folder / "images/a1.png").read_bytes()
    (folder / "old").mkdir()
    for name in ("old/whatever", "images/.a1.png~"):
        (folder / name).write_bytes(image)
    os.link(folder / "images/a2.png", folder / "a2 again.png")
    (folder / "other.png").write_bytes(image[:-1] + b"x")  # of the same size
    (folder / "link.png").symlink_to(folder / "images/a1.png")
    os.mkfifo(folder / "pipe")
    before = contents_of_plain(folder)
    assert find_held(folder, ["ann", "cleo", "nobody"]) == {
        "ann": Held(("images/a1.png", "images/a2.png"), ("a2 again.png", "images/.a1.png~", "old/whatever")),
        "cleo": Held(("images/c1.png",), ()),
        "nobody": Held((), ()),
    }
    assert contents_of_plain(folder) == before


def test_a_missing_file_is_not_held_and_nothing_is_a_copy_of_an_empty_or_an_overwritten_one(make_folder):
    folder = make_folder()
    (folder / "images/a1.png").unlink()
    (folder / "images/a2.png").write_bytes(bytes(5))
    (folder / "images/b1.png").write_bytes(b"")
    (folder / ".gitkeep").write_bytes(b"")
    (folder / "zeros").write_bytes(bytes(5))
    assert find_held(folder, ["ann", "bob"]) == {
        "ann": Held(("images/a2.png",), ()),
        "bob": Held(("images/b1.png", "images/b2.png"), ()),
    }


def with_copies(folder):
    """Two true copies of one image in a folder of their own, a second name of another; and files that are none."""
    (folder / "old ann").mkdir()
    for name in ("old ann/1", "old ann/2"):
        (folder / name).write_bytes((folder / "images/a1.png").read_bytes())
    os.link(folder / "images/a2.png", folder / "a2 again.png")
    (folder / "metadata.csv.bak").write_bytes((folder / "metadata.csv").read_bytes())
    (folder / "other.png").write_bytes(b"x" * (folder / "images/a1.png").stat().st_size)


def is_clean_but_for_others(folder, before):
    (folder / "metadata.csv.bak").unlink()
    (folder / "other.png").unlink()
    is_clean(folder, before)
    assert not (folder / "old ann").exists()


def test_byte_equal_copies_that_no_row_names_go_and_the_rest_is_counted(make_folder, tmp_path):
    folder = make_folder()
    before = contents(folder)
    with_copies(folder)
    os.link(folder / "old ann/1", tmp_path / "seen")
    size = len(before["images/a1.png"])
    n_bytes = 3 * size + 2 * len(before["images/a2.png"])
    removal = remove_subjects(folder, ["ann"])
    assert removal == Removal(2, n_bytes, n_packed=0, n_copies=3, n_unnamed=2)
    assert (tmp_path / "seen").read_bytes() == bytes(size)
    is_clean_but_for_others(folder, before)


def test_a_copy_that_a_row_names_is_another_s_image_and_stays(make_folder):
    folder = make_folder()
    (folder / "images/b1.png").write_bytes((folder / "images/a1.png").read_bytes())
    assert remove_subjects(folder, ["ann"], known=["images/b1.png", "../secret", "metadata.csv"]).n_copies == 0
    assert (folder / "images/b1.png").read_bytes()


@pytest.mark.slow
def test_killed_among_copies_it_can_be_finished(make_folder):
    whole = make_folder(name="whole")
    with_copies(whole)
    n_points = len(count_points(whole))
    for kill_at in range(1, n_points + 1):
        folder = make_folder(name=f"killed{kill_at}")
        before = contents(folder)
        with_copies(folder)
        held = find_held(folder, ["ann"])["ann"]
        command = [sys.executable, "-c", CHILD, str(folder), str(kill_at)]
        assert subprocess.run(command, check=False, timeout=PATIENCE_SECONDS).returncode == -signal.SIGKILL
        remove_subjects(folder, ["ann"], known=held.copies)
        assert not any((folder / name).exists() for name in (*held.images, *held.copies))
        is_clean_but_for_others(folder, before)


def contents_of_plain(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CHILD = """
import os, signal, sys
from pathlib import Path
from unlearning.faces import remove_subjects
left = int(sys.argv[2])
def reached(point):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
remove_subjects(Path(sys.argv[1]), ["ann"], reached=reached)
"""


def count_points(folder):
    points = []
    remove_subjects(folder, ["ann"], reached=points.append)
    return points


@pytest.mark.slow
def test_killed_at_any_point_it_can_be_finished(make_folder):
    whole = make_folder(name="whole")
    pack(whole, size=SIZE, channels=1)
    points = count_points(whole)
    assert len(points) == 16
    for kill_at in range(1, len(points) + 1):
        folder = make_folder(name=f"killed{kill_at}")
        before = contents(folder)
        pack(folder, size=SIZE, channels=1)
        command = [sys.executable, "-c", CHILD, str(folder), str(kill_at)]
        assert subprocess.run(command, check=False, timeout=PATIENCE_SECONDS).returncode == -signal.SIGKILL
        never_trains_on_a_half_removed_person(folder)
        remove_subjects(folder, ["ann"])
        is_clean(folder, before)


def never_trains_on_a_half_removed_person(folder):
    """Either nothing is gone yet, or the folder refuses to be packed, or the person is not in it."""
    try:
        faces = pack(folder, size=SIZE, channels=1)
    except FacesError:
        return
    n_left = len(faces.where(subjects=["ann"]))
    assert n_left == 0 or (n_left == 2 and (folder / "images/a1.png").exists())
    assert faces.images.reshape(len(faces), -1).any(axis=1).all()


def test_a_kill_while_the_old_table_has_two_names_does_not_cost_the_table(make_folder):
    """The one point where sweeping blindly would zero the table itself, reached by another person's erasure."""
    folder = make_folder()

    class Killed(BaseException):
        pass

    def reached(point):
        if point == "old table linked":
            raise Killed

    with pytest.raises(Killed):
        remove_subjects(folder, ["ann"], reached=reached)
    assert remove_subjects(folder, ["cleo"]).n_images == 1
    assert remove_subjects(folder, ["ann"]).n_images == 2
    assert [row.split(",")[1] for row in (folder / "metadata.csv").read_text().splitlines()[1:]] == ["bob", "bob"]
