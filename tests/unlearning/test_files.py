"""Destroying, and sweeping what killed processes left; `tests/service/banks/test_store.py` kills whoever writes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.waiting import at_once, join, line_of
from unlearning import files
from unlearning.errors import FileError


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_what_is_destroyed_shows_zeros_under_every_other_name(tmp_path: Path) -> None:
    path, other = tmp_path / "secret", tmp_path / "elsewhere"
    path.write_bytes(b"x" * (2 * (1 << 20) + 5))
    os.link(path, other)
    with path.open("rb") as open_before:
        assert files.destroy(path) == 2 * (1 << 20) + 5
        assert open_before.read() == bytes(2 * (1 << 20) + 5)
    assert names(tmp_path) == ["elsewhere"]
    assert not other.read_bytes().strip(b"\0")


def test_a_missing_file_is_gone_and_so_is_one_in_a_missing_folder(tmp_path: Path) -> None:
    assert files.destroy(tmp_path / "nothing", tmp_path / "no folder" / "nothing") == 0
    assert files.destroy() == 0
    assert files.destroy_folder(tmp_path / "no folder") == 0


def test_of_many_files_none_is_removed_before_all_are_zeros(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(40)]
    for path in paths:
        path.write_bytes(b"secret")
    points: list[str] = []

    def reached(point: str) -> None:
        points.append(point)
        if points.count("overwritten") == 40 and point == "overwritten":
            assert {path.read_bytes() for path in paths} == {bytes(6)}

    assert files.destroy(*paths, tmp_path / "missing", reached=reached) == 240
    assert points == ["overwritten"] * 40 + ["unlinked"] * 40
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", [
    pytest.param(lambda path, other: path.symlink_to(other), id="link"),
    pytest.param(lambda path, other: path.mkdir(), id="folder"),
    pytest.param(lambda path, other: os.mkfifo(path), id="pipe"),
])  # fmt: skip
def test_what_is_no_plain_file_is_refused_by_its_inode(tmp_path: Path, make: Callable[[Path, Path], object]) -> None:
    precious, odd, last = tmp_path / "precious", tmp_path / "ann's", tmp_path / "last"
    precious.write_bytes(b"precious")
    last.write_bytes(b"secret")
    make(odd, precious)
    with pytest.raises(FileError, match=rf"inode {os.lstat(odd).st_ino}") as caught:
        files.destroy(odd, last)
    assert "ann" not in str(caught.value)
    assert precious.read_bytes() == b"precious"
    assert os.path.lexists(odd)
    assert last.read_bytes() == bytes(6)


def test_an_error_is_raised_and_the_others_are_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"secret")
    real = os.open

    def refusing(path: object, *args: object, **kwargs: object) -> int:
        if path == paths[0]:
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refusing)
        with pytest.raises(PermissionError):
            files.destroy(*paths)
    assert [path.read_bytes() for path in paths] == [b"secret", bytes(6), bytes(6)]
    files.destroy(*paths)
    assert names(tmp_path) == []


def test_a_folder_goes_with_everything_below(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "secret").write_bytes(b"secret")
    (folder / "secret").write_bytes(b"secret")
    os.link(folder / "secret", tmp_path / "other name")
    assert files.destroy_folder(folder) == 12
    assert names(tmp_path) == ["other name"]
    assert (tmp_path / "other name").read_bytes() == bytes(6)


def test_a_folder_with_a_link_in_it_is_refused_and_what_it_leads_to_is_untouched(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for made in (folder, elsewhere):
        made.mkdir()
    (elsewhere / "precious").write_bytes(b"precious")
    (folder / "link").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(FileError, match="symbolic link"):
        files.destroy_folder(folder)
    (folder / "link").unlink()
    (tmp_path / "link").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(FileError, match="Expected a folder to destroy, got a symbolic link"):
        files.destroy_folder(tmp_path / "link")
    assert (elsewhere / "precious").read_bytes() == b"precious"


def test_overwriting_destroys_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "key"
    files.overwrite(path, b"first")
    os.link(path, tmp_path / "backup")
    files.overwrite(path, b"second", mode=0o640)
    assert path.read_bytes() == b"second"
    assert path.stat().st_mode & 0o777 & ~0o640 == 0
    assert (tmp_path / "backup").read_bytes() == bytes(5)
    assert names(tmp_path) == ["backup", "key"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    files.overwrite(path, b"first")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        files.overwrite(path, b"second")
    assert path.read_bytes() == b"first"
    assert not [name for name in names(tmp_path) if name.endswith(".tmp")]
    files.sweep(tmp_path)
    assert names(tmp_path) == ["key"]
    assert path.read_bytes() == b"first"


WRITER = """
import os, signal, sys
from pathlib import Path
from unlearning import files
place, folder, die_at = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
def reached(point):
    if point == die_at:
        print("there", flush=True)
        sys.stdin.read()
if place == "scratch":
    with files.scratch(folder, ".training-") as made:
        (made / "weights").write_bytes(b"SECRET")
        reached("inside")
else:
    files.overwrite(folder / "key", b"NEW SECRET", reached=reached)
"""


@pytest.mark.parametrize(("kind", "die_at", "left"), [
    ("overwrite", "written", b"OLD"), ("overwrite", "linked", b"OLD"), ("overwrite", "replaced", b"NEW SECRET"),
    ("scratch", "inside", b"OLD"),
])  # fmt: skip
def test_what_a_living_process_uses_stays_and_what_a_killed_one_left_goes(
    tmp_path: Path, kind: str, die_at: str, left: bytes
) -> None:
    (tmp_path / "key").write_bytes(b"OLD")
    command = [sys.executable, "-c", WRITER, kind, str(tmp_path), die_at]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert line_of(writer) == "there\n"
        before = names(tmp_path)
        swept = files.sweep(tmp_path) + files.sweep_scratch(tmp_path, ".training-")
        if die_at == "replaced":  # what was there before is to be destroyed, by whom does not matter
            assert (swept, names(tmp_path)) == (1, ["key"])
        else:
            assert (swept, names(tmp_path)) == (0, before)
        writer.send_signal(signal.SIGKILL)
    files.sweep(tmp_path)
    files.sweep_scratch(tmp_path, ".training-")
    assert names(tmp_path) == ["key"]
    assert (tmp_path / "key").read_bytes() == left


def test_a_second_name_goes_without_what_it_names_and_other_people_s_files_stay(tmp_path: Path) -> None:
    (tmp_path / "model").write_bytes(b"model")
    os.link(tmp_path / "model", tmp_path / ".model.0123456789abcdef.tmp")  # killed between giving one and taking one
    (tmp_path / ".model.0123456789abcdef.old").write_bytes(b"secret")
    (tmp_path / ".other.0123456789abcdef.tmp").write_bytes(b"secret")
    (tmp_path / ".draft.tmp").write_bytes(b"an editor's")
    (tmp_path / ".training-1" / "below").mkdir(parents=True)
    (tmp_path / ".training-1" / "below" / "weights").write_bytes(bytes(6))  # killed while it was destroyed
    (tmp_path / ".training-2").mkdir()  # killed before it took the lock
    assert [path.suffix for path in files.left_beside(tmp_path / "model")] == [".old", ".tmp"]
    assert files.sweep(tmp_path) == 3
    assert files.sweep_scratch(tmp_path, ".training-") == 1
    assert names(tmp_path) == [".draft.tmp", "model"]
    assert (tmp_path / "model").read_bytes() == b"model"
    assert files.sweep(tmp_path / "nothing") == files.sweep_scratch(tmp_path / "nothing", ".x") == 0


def test_writers_and_a_sweep_at_once(tmp_path: Path) -> None:
    """Whoever is swept between making a file and locking it makes another."""
    stop = threading.Event()

    def write(number: int) -> None:
        for turn in range(15):
            files.overwrite(tmp_path / str(number), f"{turn}".encode())
            with files.scratch(tmp_path, ".work-") as folder:
                (folder / "file").write_bytes(b"1")

    def sweep() -> None:
        while not stop.is_set():
            files.sweep(tmp_path)
            files.sweep_scratch(tmp_path, ".work-")

    sweeper = threading.Thread(target=sweep, daemon=True)
    sweeper.start()
    try:
        at_once(*(partial(write, number) for number in range(3)))
    finally:
        stop.set()
    join(sweeper)
    assert names(tmp_path) == ["0", "1", "2"]
    assert {(tmp_path / str(number)).read_bytes() for number in range(3)} == {b"14"}
