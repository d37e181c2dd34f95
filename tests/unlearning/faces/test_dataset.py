"""The data folder's rules: each broken one is named by its line, with a remedy, and without the person."""

from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unlearning.faces.folders import TABLE, image_file, write_table
from unlearning.errors import FacesError
from unlearning.faces import check_folder, checking
from unlearning.faces.dataset import MOST_LISTED, count_subjects, read_metadata
from unlearning.faces.rows import Row


def refused(folder, *, row, match, check=check_folder):
    """The folder is refused for this line and reason, and no message names a person."""
    with pytest.raises(FacesError, match=match) as caught:
        check(folder)
    assert caught.value.row == row
    for person in ("ann", "bob", "cleo"):
        assert person not in str(caught.value)


def test_a_sound_folder_gives_its_rows_in_order(make_folder):
    folder = make_folder()
    rows = check_folder(folder)
    assert rows == tuple(Row(*fields) for fields in TABLE)
    assert [row.line for row in rows] == [2, 3, 4, 5, 6]
    assert rows == read_metadata(folder) == check_folder(folder, decode=False)


def test_people_are_counted_whatever_rule_is_broken(make_folder, tmp_path):
    folder = make_folder()
    assert count_subjects(folder) == 3
    table = folder / "metadata.csv"
    table.write_text(table.read_text().replace("train", "test"))  # nothing to train on
    assert count_subjects(folder) == 3
    table.write_bytes(b"\xff")
    assert count_subjects(folder) is count_subjects(tmp_path / "nowhere") is None


def test_columns_may_come_in_any_order_and_with_a_byte_order_mark(make_folder):
    folder = make_folder()
    text = "\n".join(["split,label,user_id,file_name", *(",".join(reversed(row)) for row in TABLE)])
    (folder / "metadata.csv").write_text(text, encoding="utf-8-sig")
    assert read_metadata(folder) == tuple(Row(*fields) for fields in TABLE)


def test_progress_counts_images(make_folder):
    seen = []
    check_folder(make_folder(), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(5, 5)]


def test_no_table(tmp_path):
    refused(tmp_path, row=None, match=r"Expected metadata.csv in .*expunge data")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("file_name,user_id,label", "split not found"),
        ("file_name,user_id,label,split,age", "Expected only the columns"),
        ("", "file_name, user_id, label, split not found"),
    ],
)
def test_columns(make_folder, header, match):
    folder = make_folder()
    write_table(folder, TABLE, header=header)
    refused(folder, row=1, match=match)


def test_not_utf8_names_the_line(make_folder):
    folder = make_folder()
    with (folder / "metadata.csv").open("ab") as table:
        table.write(b"images/\xff.png,x,glasses,train\n")
    refused(folder, row=7, match="UTF-8")


@pytest.mark.parametrize(
    ("change", "encoding", "row", "match"),
    [
        (lambda text: text.replace(",", ";"), "utf-8", 1, "separated by commas, found semicolons or tabs.*data import"),
        (lambda text: text.replace(",", "\t"), "utf-8", 1, "separated by commas, found semicolons or tabs"),
        (lambda text: "sep=;\n" + text.replace(",", ";"), "utf-8", 1, "separated by commas, found semicolons"),
        (lambda text: text.replace("\n", ",\n"), "utf-8", 1, "found a comma at the end of the line"),
        (lambda text: text + ",,,\n", "utf-8", 7, "a row of nothing but commas; take it out"),
        (lambda text: text, "utf-16", 1, "save the table as “CSV UTF-8”"),
    ],
    ids=["semicolons", "tabs", "sep", "comma", "empty row", "utf16"],
)
def test_a_table_as_an_office_program_writes_it_is_told_the_remedy(make_folder, change, encoding, row, match):
    folder = make_folder()
    path = folder / "metadata.csv"
    path.write_bytes(change(path.read_text(encoding="utf-8")).encode(encoding))
    refused(folder, row=row, match=match)


def test_a_file_s_name_in_another_unicode_form_is_said(make_folder):
    folder = make_folder()
    (folder / "images/a1.png").rename(folder / unicodedata.normalize("NFD", "images/é.png"))
    write_table(folder, [("images/é.png", *TABLE[0][1:]), *TABLE[1:]])
    refused(folder, row=2, match="another Unicode form")


BROKEN = {
    "too few fields": (("images/d.png", "dora", "glasses"), "4 fields, got 3"),
    "no label": (("images/d.png", "dora", "", "train"), "Expected a label"),
    "no user_id": (("images/d.png", "", "glasses", "train"), "Expected a user_id"),
    "blank around a user_id": (("images/d.png", "dora ", "glasses", "train"), "without blanks"),
    "control character": (("images/d.png", "do\tra", "glasses", "train"), "control characters"),
    "decomposed letter": (("images/d.png", "dora\u0308", "glasses", "train"), "NFC"),
    "unknown split": (("images/d.png", "dora", "glasses", "dev"), "Expected a split out of train"),
    "double name": (("images/a2.png", "ann", "glasses", "train"), "already in line 3"),
    "person in two splits": (("images/d.png", "bob", "glasses", "test"), "in train in line 4"),
    "path above": (("../d.png", "dora", "glasses", "train"), "inside it"),
    "path above, hidden": (("images/../../d.png", "dora", "glasses", "train"), "inside it"),
    "absolute path": (("/etc/d.png", "dora", "glasses", "train"), "inside it"),
    "path not in normal form": (("images//a1.png", "dora", "glasses", "train"), "inside it"),
    "same file by another path": (("./images/a1.png", "dora", "glasses", "train"), "inside it"),
    "backslash": (("images\\d.png", "dora", "glasses", "train"), "inside it"),
    "hidden": ((".packed/d.png", "dora", "glasses", "train"), "begin with a dot"),
    "the table itself": (("metadata.csv", "dora", "glasses", "train"), "ending in one of"),
    "missing file": (("images/d.png", "dora", "glasses", "train"), "missing; put it back"),
    "a file as a folder": (("images/a1.png/d.png", "dora", "glasses", "train"), "missing; put it back"),
}


@pytest.mark.parametrize(("line", "match"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_rows_are_named(make_folder, line, match):
    folder = make_folder()
    with (folder / "metadata.csv").open("a", encoding="utf-8") as table:
        table.write(",".join(line) + "\n")
    refused(folder, row=7, match=match)
    refused(folder, row=7, match=match, check=lambda folder: check_folder(folder, decode=False))


def test_a_quoted_newline_does_not_shift_the_lines(make_folder):
    folder = make_folder()
    with (folder / "metadata.csv").open("a", encoding="utf-8") as table:
        table.write('images/d.png,"do\nra",glasses,train\n')
    refused(folder, row=8, match="control characters")


def test_unbalanced_quotes(make_folder):
    folder = make_folder()
    with (folder / "metadata.csv").open("a", encoding="utf-8") as table:
        table.write('images/d.png,"dora,glasses,train\n')
    refused(folder, row=7, match="comma-separated")


def test_nothing_to_train_on(make_folder):
    folder = make_folder()
    write_table(folder, TABLE[-1:])
    refused(folder, row=None, match="none with split train")


def test_one_class_is_none(make_folder):
    folder = make_folder()
    write_table(folder, TABLE[1:3])
    refused(folder, row=None, match="two classes")


def test_a_symbolic_link_is_refused(make_folder, tmp_path):
    folder = make_folder()
    (tmp_path / "outside.png").write_bytes(image_file(99))
    (folder / "images/b1.png").unlink()
    (folder / "images/b1.png").symlink_to(tmp_path / "outside.png")
    refused(folder, row=4, match="symbolic link")


def test_a_linked_folder_inside_is_refused(make_folder, tmp_path):
    folder = make_folder()
    (folder / "images").rename(tmp_path / "elsewhere")
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    refused(folder, row=2, match="symbolic link")


def test_the_data_folder_itself_may_be_a_link(make_folder, tmp_path):
    (tmp_path / "link").symlink_to(make_folder())
    assert len(check_folder(tmp_path / "link")) == 5


def test_a_pipe_does_not_block(make_folder):
    folder = make_folder()
    (folder / "images/b1.png").unlink()
    os.mkfifo(folder / "images/b1.png")
    refused(folder, row=4, match="plain file")


def test_a_hard_link_is_refused(make_folder):
    folder = make_folder()
    (folder / "images/b1.png").unlink()
    os.link(folder / "images/a1.png", folder / "images/b1.png")
    refused(folder, row=4, match="hard link to the file of line 2")


def test_the_first_line_that_is_wrong_is_named(make_folder):
    folder = make_folder()
    (folder / "images/b1.png").unlink()
    (folder / "images/c1.png").unlink()
    os.link(folder / "images/a1.png", folder / "images/b1.png")
    refused(folder, row=4, match="hard link to the file of line 2")  # and line 6 has no file
    (folder / "images/a2.png").unlink()
    refused(folder, row=3, match="missing")


def test_one_inode_number_on_two_devices_is_two_files(make_folder, monkeypatch):
    folder = make_folder()
    there = checking.file_status

    def status(folder, row):
        fields = list(there(folder, row))
        fields[1], fields[2] = 7, row.line  # inode, device
        return os.stat_result(fields)

    monkeypatch.setattr(checking, "file_status", status)
    assert len(check_folder(folder, decode=False)) == 5


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: b"hello", lambda data: data[:-30], lambda data: data[:60] + b"x" + data[61:]],
    ids=["empty", "no image", "truncated", "flipped byte"],
)
def test_a_damaged_image_is_named_by_the_full_check_only(make_folder, damage):
    folder = make_folder()
    path = folder / "images/b2.png"
    path.write_bytes(damage(path.read_bytes()))
    refused(folder, row=5, match="Replace the file or take the line out")
    assert check_folder(folder, decode=False)


@pytest.mark.parametrize("n_more", [0, 3])
def test_all_damaged_images_are_named_up_to_a_number(make_folder, n_more):
    table = [(f"images/{n:03d}.png", f"p{n}", str(n % 2), "train") for n in range(120)]
    folder = make_folder(table)
    damaged = range(40, 40 + 2 * (MOST_LISTED + n_more), 2)
    for n in damaged:
        (folder / table[n][0]).write_bytes(b"no image")
    with pytest.raises(FacesError) as caught:
        check_folder(folder)
    first, *lines = str(caught.value).split("\n")
    assert first == f"{len(damaged)} files cannot be used:"
    assert [line.partition(":")[0] for line in lines[:MOST_LISTED]] == [
        f"  metadata.csv, line {n + 2}" for n in damaged[:MOST_LISTED]
    ]
    assert lines[MOST_LISTED:] == ([f"  … and {n_more} more"] if n_more else [])
    assert "p40" not in str(caught.value)


def test_one_image_under_two_people(make_folder):
    folder = make_folder()
    (folder / "images/c1.png").write_bytes((folder / "images/a1.png").read_bytes())
    refused(folder, row=6, match="another person in line 2")


def test_one_image_twice_is_allowed_to_one_person(make_folder):
    folder = make_folder()
    (folder / "images/a2.png").write_bytes((folder / "images/a1.png").read_bytes())
    assert len(check_folder(folder)) == 5


def test_one_image_under_two_people_is_named_before_a_damaged_one_far_below(make_folder):
    table = [(f"images/{n:03d}.png", f"p{n}", str(n % 2), "train") for n in range(70)]
    folder = make_folder(table)
    (folder / table[5][0]).write_bytes((folder / table[3][0]).read_bytes())
    (folder / table[60][0]).write_bytes(b"no image")
    refused(folder, row=7, match="another person in line 5")


def test_erased_people_are_refused_and_asked_for_once(make_folder):
    folder = make_folder()
    asked = []

    def erased(user_id):
        asked.append(user_id)
        return user_id == "bob"

    refused(folder, row=4, match="was erased", check=lambda folder: check_folder(folder, erased=erased))
    assert asked == ["ann", "bob"]
    assert check_folder(folder, erased=lambda user_id: False)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: text.encode("utf-8", "replace"))))
def test_any_bytes_as_a_table_are_an_error_of_ours(tmp_path, data):
    (tmp_path / "metadata.csv").write_bytes(b"file_name,user_id,label,split\n" + data)
    with pytest.raises(FacesError):
        read_metadata(tmp_path)
