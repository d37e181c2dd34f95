"""CASIA-SURF's layout, on a made-up small tree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unlearning.faces.folders import image_file
from unlearning.errors import FacesError
from unlearning.faces import check_folder
from unlearning.faces.sources.casia_surf import age_labels, read_ages, write_folder


@pytest.fixture
def source(tmp_path):
    source = tmp_path / "cefa"
    lines = []
    for number in range(20):
        lines.append(f"1_{number:03d} {20 + 2 * number} {'M' if number % 2 else 'F'}")
        if number == 19:
            continue  # in the list, but without images
        folder = source / f"WBackground/s{number % 2}/1_{number:03d}"
        for kind in ("real.rssdk/color", "real.rssdk/depth", "fake.rssdk/color"):
            (folder / kind).mkdir(parents=True)
            for frame in range(3):
                (folder / kind / f"{frame:04d}.jpg").write_bytes(
                    image_file(100 * number + frame, channels=3, kind="JPEG")
                )
    (source / "Age_Gender.txt").write_text("\n".join(lines) + "\n")
    return source


def test_only_real_colour_images_are_taken(source, tmp_path):
    (source / "WBackground/s0/1_000/real.rssdk/color/._0000.jpg").write_bytes(b"\0\5\x16\7")  # macOS leaves these
    rows = write_folder(source, tmp_path / "faces", seed=1)
    assert check_folder(tmp_path / "faces") == rows
    assert len(rows) == 19 * 3
    people = {row.user_id: row.split for row in rows}
    assert sorted(people.values()).count("test") == 2
    assert sorted(people.values()).count("validation") == 2
    assert not any("1_0" in row.file_name for row in rows)
    first = (source / "WBackground/s0/1_000/real.rssdk/color/0000.jpg").read_bytes()
    assert (tmp_path / "faces" / rows[0].file_name).read_bytes() == first


def test_labels_are_the_competition_s_bins(source, tmp_path):
    rows = write_folder(source, tmp_path / "faces")
    edges = np.linspace(20, 59, 11)
    for row in rows:
        age = 20 + 2 * int(row.user_id[2:])
        low, high = map(int, row.label.split("-"))
        assert low <= age <= high
        number = next(i for i in range(10) if edges[i] <= age < edges[i + 1])
        assert edges[number] <= low
        assert high < edges[number + 1]


def test_the_seed_makes_the_split(source, tmp_path):
    splits = [
        tuple(row.split for row in write_folder(source, tmp_path / name, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert splits[0] == splits[1] != splits[2]


@given(st.dictionaries(st.text(min_size=1), st.integers(0, 110), min_size=1, max_size=60))
def test_bins_agree_with_a_plain_search(ages):
    labels = age_labels(ages)
    edges = np.linspace(min(ages.values()), max(ages.values()) + 1, 11)
    for person, age in ages.items():
        number = max(i for i in range(10) if edges[i] <= age)
        low, high = map(int, labels[person].split("-"))
        assert edges[number] <= low <= age <= high < edges[number + 1]
    assert len(set(labels.values())) <= 10


def test_a_line_of_column_names_is_passed_over(tmp_path):
    (tmp_path / "list").write_text("id age gender\nx 30 M\n\ny 40 F\n")
    assert read_ages(tmp_path / "list") == {"x": 30, "y": 40}


@pytest.mark.parametrize("line", ["z", "z old F", "x 31 M"])
def test_a_line_that_cannot_be_read(tmp_path, line):
    (tmp_path / "list").write_text(f"x 30 M\n{line}\n")
    with pytest.raises(FacesError, match="line 2"):
        read_ages(tmp_path / "list")


def test_missing_parts(source, tmp_path):
    with pytest.raises(FacesError, match="list of ages"):
        write_folder(tmp_path / "nowhere", tmp_path / "faces")
    (source / "Age_Gender.txt").write_text("1_000 30 M\n")
    with pytest.raises(FacesError, match="18 of 19 are missing"):
        write_folder(source, tmp_path / "faces")
    (source / "Age_Gender.txt").write_text("\n")
    with pytest.raises(FacesError, match="empty list"):
        write_folder(source, tmp_path / "faces")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/Age_Gender.txt").write_text("x 30 M\n")
    with pytest.raises(FacesError, match="found none"):
        write_folder(tmp_path / "bare", tmp_path / "faces")


def test_a_list_with_a_byte_order_mark_is_read(tmp_path):
    path = tmp_path / "Age_Gender.txt"
    path.write_text("1 25 f\n2 30 m\n", encoding="utf-8-sig")
    assert read_ages(path) == {"1": 25, "2": 30}
