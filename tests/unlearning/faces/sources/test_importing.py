"""What every layout has in common: all is looked at before anything is written."""

from __future__ import annotations

import pytest

from tests.unlearning.faces.folders import image_file
from unlearning.errors import FacesError
from unlearning.faces import check_folder
from unlearning.faces.sources.importing import Found, age_bins, write_found


@pytest.fixture
def found(tmp_path):
    """Ten people with two images each, labels by turns."""
    listed = []
    for number in range(20):
        path = tmp_path / "source" / f"{number}.PNG"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image_file(number))
        listed.append(Found(path, f"line {number + 1}", f"person {number // 2}", f"label {number % 2}"))
    return listed


def changed(found, number, **changes):
    values = {name: getattr(found[number], name) for name in ("path", "place", "user_id", "label", "split")}
    return [*found[:number], Found(**{**values, **changes}), *found[number + 1 :]]


def test_what_is_written_keeps_every_rule_of_a_data_folder(found, tmp_path):
    steps = []
    rows = write_found(tmp_path / "data", found, seed=3, progress=lambda *step: steps.append(step))
    assert check_folder(tmp_path / "data") == rows
    assert [(row.user_id, row.label) for row in rows] == [(each.user_id, each.label) for each in found]
    people = {row.user_id: row.split for row in rows}
    assert sorted(people.values()).count("train") == 8
    assert {row.split for row in rows} == {"train", "validation", "test"}
    assert steps[-1] == (40, 40)
    contents = [(tmp_path / "data" / row.file_name).read_bytes() for row in rows]
    assert contents == [each.path.read_bytes() for each in found]
    assert not any("person" in row.file_name for row in rows)


def test_the_same_seed_draws_the_same_splits(found, tmp_path):
    splits = [[row.split for row in write_found(tmp_path / f"{i}", found, seed=i % 2)] for i in range(4)]
    assert splits[0] == splits[2]
    assert splits[1] == splits[3]


def test_given_splits_are_kept(found, tmp_path):
    given = [
        Found(each.path, each.place, each.user_id, each.label, "test" if i < 4 else "train")
        for i, each in enumerate(found)
    ]
    assert [row.split for row in write_found(tmp_path / "data", given)] == [each.split for each in given]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"split": "train"}, r"line 1: Expected a split out of"),
        ({"user_id": ""}, r"line 3: Expected a person, got nothing"),
        ({"label": " x"}, r"line 3: Expected a label without blanks"),
        ({"user_id": "e\u0301"}, r"line 3: Expected a person without blanks .* NFC"),
    ],
)
def test_a_wrong_word_is_named_with_its_place(found, tmp_path, change, sentence):
    with pytest.raises(FacesError, match=sentence):
        write_found(tmp_path / "data", changed(found, 2, **change))
    assert not (tmp_path / "data").exists()


def test_a_person_in_two_splits(found, tmp_path):
    given = [Found(each.path, each.place, each.user_id, each.label, "train") for each in found]
    with pytest.raises(FacesError, match=r"line 2: .* split test here and in train at line 1"):
        write_found(tmp_path / "data", changed(given, 1, split="test"))
    nobody = [Found(each.path, each.place, each.user_id, each.label, "test") for each in found]
    with pytest.raises(FacesError, match="nobody is in split train"):
        write_found(tmp_path / "data", nobody)


def test_one_class_is_not_enough(found, tmp_path):
    one = [Found(each.path, each.place, each.user_id, "same") for each in found]
    with pytest.raises(FacesError, match="two classes"):
        write_found(tmp_path / "data", one)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.unlink(), r"line 6: The file named here is missing"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), r"line 6: .*Replace the file or take it out"),
        (lambda path: path.write_bytes(b"no image"), r"line 6: .*Replace the file"),
        (lambda path: path.write_bytes(image_file(0)), r"line 6: The same image belongs to another person at line 1"),
    ],
    ids=["missing", "truncated", "no image", "another's"],
)
def test_a_bad_file_is_named_and_nothing_is_written(found, tmp_path, spoil, sentence):
    spoil(found[5].path)
    with pytest.raises(FacesError, match=sentence) as caught:
        write_found(tmp_path / "data", found)
    assert "person 2" not in str(caught.value)
    assert not (tmp_path / "data").exists()


def test_all_bad_files_are_named_at_once(found, tmp_path):
    found[3].path.write_bytes(b"no image")
    found[7].path.unlink()
    found[11].path.write_bytes(image_file(11)[:-20])
    with pytest.raises(FacesError) as caught:
        write_found(tmp_path / "data", found)
    first, *lines = str(caught.value).split("\n")
    assert first == "3 files cannot be used:"
    assert [line.partition(":")[0] for line in lines] == ["  line 4", "  line 8", "  line 12"]
    assert not (tmp_path / "data").exists()


def test_another_format_is_refused_with_the_remedy(found, tmp_path):
    with pytest.raises(FacesError, match=r"line 1: Expected a file ending in one of .*convert it"):
        write_found(tmp_path / "data", changed(found, 0, path=tmp_path / "x.bmp"))


def test_a_data_folder_is_not_written_over(found, tmp_path):
    write_found(tmp_path / "data", found)
    with pytest.raises(FacesError, match="already is a data folder"):
        write_found(tmp_path / "data", found)


def test_bins_hold_every_age_once():
    bins = age_bins(18, 67)
    assert list(bins) == list(range(18, 68))
    assert len(set(bins.values())) == 10
    assert (bins[18], bins[67]) == ("18-22", "63-67")
    assert age_bins(30, 30) == {30: "30-30"}
