"""Made-up people: stable, noisy as asked, and of an age that can be read off their faces."""

from __future__ import annotations

import numpy as np
import pytest

from unlearning.errors import FacesError
from unlearning.faces import check_folder, pack
from unlearning.faces.sources.synthetic import CLASSES, draw, write_folder


def test_shapes_and_splits():
    seen = []
    faces = draw(n_subjects=70, images_per_subject=3, seed=5, progress=lambda *step: seen.append(step))
    assert faces.images.shape == (210, 32, 32, 3)
    assert faces.images.dtype == np.uint8
    assert faces.labels.dtype == np.int64
    assert faces.classes == CLASSES
    assert set(faces.labels) <= set(range(10))
    assert seen == [(192, 210), (210, 210)]
    by_person = {subject: set(faces.splits[faces.subjects == subject]) for subject in set(faces.subjects)}
    assert len(by_person) == 70
    assert all(len(splits) == 1 for splits in by_person.values())
    assert len(faces.train_subjects()) == 56


def test_a_seed_is_a_world_and_a_person_does_not_depend_on_how_many_follow():
    small = draw(n_subjects=70, images_per_subject=2, seed=1, size=(16, 16))
    large = draw(n_subjects=130, images_per_subject=2, seed=1, size=(16, 16))
    again = draw(n_subjects=70, images_per_subject=2, seed=1, size=(16, 16))
    other = draw(n_subjects=70, images_per_subject=2, seed=2, size=(16, 16))
    np.testing.assert_array_equal(small.images, again.images)
    np.testing.assert_array_equal(small.labels, large.labels[:140])
    np.testing.assert_array_equal(small.images, large.images[:140])
    assert small.manifest_digest == again.manifest_digest != large.manifest_digest
    assert np.abs(small.images.astype(int) - other.images).mean() > 10


def test_no_two_images_are_the_same():
    faces = draw(n_subjects=64, images_per_subject=10, seed=0)
    assert len(np.unique(faces.images.reshape(640, -1), axis=0)) == 640


def test_noise_comes_in_the_shares_asked_for():
    """Shares of 4,000 people and 8,000 images; four standard deviations, false positive rate below 2 in 10,000."""
    settings = {"n_subjects": 4000, "images_per_subject": 2, "size": (8, 8), "seed": 3}
    true = draw(**settings, person_noise=0, picture_noise=0).labels
    assert (true.reshape(-1, 2) == true.reshape(-1, 2)[:, :1]).all()
    assert np.bincount(true, minlength=10).min() > 600
    by_person = draw(**settings, person_noise=0.1, picture_noise=0).labels
    wrong = (by_person != true).reshape(-1, 2)
    assert (wrong[:, 0] == wrong[:, 1]).all()
    assert wrong[:, 0].mean() == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 4000))
    by_image = draw(**settings, person_noise=0, picture_noise=0.1).labels
    assert (by_image != true).mean() == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 8000))


def test_the_age_can_be_read_off_new_faces_but_not_exactly():
    """Ridge regression on the pixels of 400 people, seen on 100 others (fixed seed: no chance in the outcome)."""
    faces = draw(n_subjects=500, images_per_subject=4, seed=7, person_noise=0, picture_noise=0)
    pixels = faces.images.astype(np.float32).reshape(500, 4, -1) / 255
    x = pixels - pixels[:400].mean(axis=(0, 1))
    known, new = x[:400].reshape(1600, -1), x[400:].reshape(400, -1)
    age, truth = faces.labels[:1600] - 4.5, faces.labels[1600:] - 4.5
    weights = np.linalg.solve(known @ known.T + 300 * np.eye(1600), age)
    correlation = np.corrcoef(new @ (known.T @ weights), truth)[0, 1]
    assert 0.7 < correlation < 0.99


def test_the_folder_holds_the_same_faces(tmp_path):
    options = {"n_subjects": 12, "images_per_subject": 3, "size": (20, 16), "seed": 4}
    rows = write_folder(tmp_path / "faces", **options)
    assert check_folder(tmp_path / "faces") == rows
    packed = pack(tmp_path / "faces", size=(20, 16), channels=3, classes=CLASSES)
    drawn = draw(**options)
    np.testing.assert_array_equal(packed.images, drawn.images)
    np.testing.assert_array_equal(packed.labels, drawn.labels)
    np.testing.assert_array_equal(packed.subjects, drawn.subjects)
    np.testing.assert_array_equal(packed.splits, drawn.splits)
    assert not any("p00" in row.file_name for row in rows)


@pytest.mark.parametrize(
    "change",
    [
        {"n_subjects": 0},
        {"images_per_subject": 0},
        {"size": (7, 32)},
        {"seed": -1},
        {"person_noise": 1.5},
        {"picture_noise": -0.1},
    ],
)
def test_settings_out_of_range(tmp_path, change):
    options = {"n_subjects": 3, "images_per_subject": 1} | change
    with pytest.raises(FacesError, match=f"Expected {next(iter(change))}"):
        draw(**options)
    with pytest.raises(FacesError, match=f"Expected {next(iter(change))}"):
        write_folder(tmp_path, **options)
