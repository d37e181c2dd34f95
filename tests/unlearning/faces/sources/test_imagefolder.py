"""People as folders, and the tables of Hugging Face's imagefolder."""

from __future__ import annotations

import json

import pytest

from tests.unlearning.faces.folders import image_file
from unlearning.errors import FacesError
from unlearning.faces import check_folder
from unlearning.faces.sources.imagefolder import write_folder
from unlearning.faces.sources.table import Columns


def put(source, name, number):
    path = source / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_file(number, channels=3, kind="JPEG"))


def test_people_are_folders_below_their_labels(tmp_path):
    source = tmp_path / "source"
    for number in range(12):
        put(source, f"{'yes' if number % 2 else 'no'}/c-{number // 3}/{number}.jpg", number)
    (source / "yes" / "Thumbs.db").write_bytes(b"x")
    put(source, "__MACOSX/yes/c-0/._1.jpg", 1)
    rows = write_folder(source, tmp_path / "data")
    assert check_folder(tmp_path / "data") == rows
    assert len(rows) == 12
    assert {(row.user_id, row.label) for row in rows} == {(f"c-{n // 3}", ["no", "yes"][n % 2]) for n in range(12)}
    assert {row.split for row in rows} == {"train", "validation", "test"}


def test_folders_of_splits_are_taken_by_any_of_their_names(tmp_path):
    source = tmp_path / "source"
    for number, split in enumerate(["train", "train", "val", "test"] * 2):
        put(source, f"{split}/{'ab'[number % 2]}/p{number}/{number}.jpg", number)
    rows = write_folder(source, tmp_path / "data")
    assert {(row.user_id, row.split) for row in rows} == {
        (f"p{n}", ["train", "train", "validation", "test"][n % 4]) for n in range(8)
    }


@pytest.mark.parametrize("name", ["p1/1.jpg", "a/b/c/p1/1.jpg", "train/p1/1.jpg", "1.jpg", "odd/a/p1/1.jpg"])
def test_other_depths_are_refused_without_a_person_s_name(tmp_path, name):
    source = tmp_path / "source"
    put(source, name, 1)
    with pytest.raises(FacesError, match=r"image 1 in the order of paths: Expected LABEL/PERSON/IMAGE") as refused:
        write_folder(source, tmp_path / "data")
    assert "p1" not in str(refused.value)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("by_folder", [True, False])
def test_a_table_of_hugging_face_is_read_in_each_split(tmp_path, kind, by_folder):
    source = tmp_path / "source"
    for split in ("train", "test"):
        rows = []
        for number in range(6):
            put(source, f"{split}/img/{number}.jpg", number + (split == "test") * 6)
            part = split if not by_folder else "unused"
            rows.append({"file_name": f"img/{number}.jpg", "person": 10 * (split == "test") + number // 2,
                         "label": number % 2, "part": part})  # fmt: skip
        lines = [json.dumps(row) for row in rows]
        if kind == "csv":
            lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        (source / split / f"metadata.{kind}").write_text("\n".join(lines) + "\n")
    columns = Columns(person="person", split=None if by_folder else "part")
    rows = write_folder(source, tmp_path / "data", columns=columns)
    assert [(row.user_id, row.label, row.split) for row in rows[::6]] == [("10", "0", "test"), ("0", "0", "train")]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", r"metadata.jsonl, line 2: Expected one JSON object a line"),
        ("[1]", r"metadata.jsonl, line 2: Expected file_name, user_id, label; not there: file_name, user_id, label"),
        ('{"file_name": "1.jpg", "user_id": "p", "label": 0.5}', r"line 2: Expected texts or whole numbers as"),
        ('{"file_name": "../1.jpg", "user_id": "p", "label": 1}', r"line 2: Expected a path inside source"),
    ],
)
def test_a_wrong_line_of_json_is_named(tmp_path, line, sentence):
    source = tmp_path / "source"
    put(source, "1.jpg", 1)
    good = '{"file_name": "1.jpg", "user_id": "p", "label": 1}'
    (source / "metadata.jsonl").write_text(f"{good}\n{line}\n")
    with pytest.raises(FacesError, match=sentence):
        write_folder(source, tmp_path / "data")
