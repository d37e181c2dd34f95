"""Writing a data folder: opaque names, the table last, nothing overwritten."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unlearning.faces.folders import image_file
from unlearning.errors import FacesError
from unlearning.faces import check_folder
from unlearning.faces.writing import NewImage, split_people, write_images

IMAGES = [
    NewImage(image_file(1), ".png", "ann", "x, y", "train"),
    NewImage(image_file(2, kind="JPEG"), ".jpg", "ann", "z", "train"),
    NewImage(image_file(1), ".png", "ann", "z", "train"),
]


def test_a_written_folder_passes_its_checks(tmp_path):
    seen = []
    rows = write_images(tmp_path / "faces", IMAGES, total=3, progress=lambda *step: seen.append(step))
    assert check_folder(tmp_path / "faces") == rows
    assert [row.line for row in check_folder(tmp_path / "faces")] == [row.line for row in rows]
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert rows[0].label == "x, y"


def test_names_tell_nothing_and_are_unique(tmp_path):
    rows = write_images(tmp_path, IMAGES, total=3)
    assert not any("ann" in path.name for path in tmp_path.rglob("*"))
    assert rows[2].file_name == rows[0].file_name.replace(".png", "-2.png")


def test_a_name_may_come_from_the_pixels(tmp_path):
    one = write_images(tmp_path / "1", [NewImage(image_file(1), ".png", "ann", "x", "train", b"same")], total=1)
    two = write_images(tmp_path / "2", [NewImage(image_file(2), ".png", "ann", "x", "train", b"same")], total=1)
    assert one == two


def test_a_data_folder_is_never_written_over(tmp_path):
    write_images(tmp_path, IMAGES, total=3)
    with pytest.raises(FacesError, match="already is a data folder"):
        write_images(tmp_path, IMAGES, total=3)


def test_a_writer_that_failed_leaves_no_table_and_can_start_again(tmp_path):
    def failing():
        yield IMAGES[0]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError):
        write_images(tmp_path, failing(), total=3)
    assert not (tmp_path / "metadata.csv").exists()
    assert len(write_images(tmp_path, IMAGES, total=3)) == 3


@pytest.mark.parametrize("n_people", [1, 2, 3, 5, 10, 200, 1001])
def test_splits_by_person(n_people):
    splits = split_people(n_people, seed=3)
    counts = {split: int((splits == split).sum()) for split in ("train", "validation", "test")}
    held = 0 if n_people < 3 else max(1, round(n_people / 10))
    assert counts == {"train": n_people - 2 * held, "validation": held, "test": held}
    np.testing.assert_array_equal(splits, split_people(n_people, seed=3))
