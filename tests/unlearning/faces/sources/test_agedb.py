"""AgeDB's names, on made-up images."""

from __future__ import annotations

import pytest

from tests.unlearning.faces.folders import image_file
from unlearning.errors import FacesError
from unlearning.faces import check_folder
from unlearning.faces.sources.agedb import write_folder

PEOPLE = ("MariaCallas", "Jean_Gabin", "Ann", "Bob", "Cleo")


@pytest.fixture
def source(tmp_path):
    source = tmp_path / "AgeDB"
    source.mkdir()
    for number in range(20):
        name = f"{number}_{PEOPLE[number % 5]}_{20 + 3 * number}_{'f' if number % 5 in (0, 2, 4) else 'm'}.jpg"
        (source / name).write_bytes(image_file(number, channels=3, kind="JPEG"))
    (source / "readme.txt").write_text("not an image")
    return source


def test_names_say_who_and_how_old(source, tmp_path):
    rows = write_folder(source, tmp_path / "data", seed=1)
    assert check_folder(tmp_path / "data") == rows
    assert {row.user_id for row in rows} == set(PEOPLE)
    assert len({row.label for row in rows}) == 10
    assert "20-25" in {row.label for row in rows}
    assert not any(person in row.file_name for row in rows for person in PEOPLE)


def test_the_gender_may_be_the_label(source, tmp_path):
    rows = write_folder(source, tmp_path / "data", label="gender")
    assert {(row.user_id, row.label) for row in rows} >= {("MariaCallas", "f"), ("Bob", "m")}


def test_what_macos_left_is_skipped(source, tmp_path):
    rows = write_folder(source, tmp_path / "before")
    (source / "__MACOSX").mkdir()
    for name in ("._0_MariaCallas_20_f.jpg", "__MACOSX/._1_Ann_30_f.jpg", "__MACOSX/photo.jpg"):
        (source / name).write_bytes(b"\0\5\x16\7")
    after = write_folder(source, tmp_path / "data")
    assert [(row.user_id, row.label) for row in after] == [(row.user_id, row.label) for row in rows]


def test_another_label_or_name_or_no_image(source, tmp_path):
    with pytest.raises(FacesError, match="label out of age, gender"):
        write_folder(source, tmp_path / "data", label="height")
    with pytest.raises(FacesError, match=r"Expected images like 0_MariaCallas_35_f\.jpg"):
        write_folder(tmp_path / "nothing", tmp_path / "data")
    (source / "0_MariaCallas_35.jpg").write_bytes(image_file(99))
    with pytest.raises(FacesError, match=r"image 2 in the order of paths: .*rename the file") as caught:
        write_folder(source, tmp_path / "data")
    assert "/0_MariaCallas" not in str(caught.value)
