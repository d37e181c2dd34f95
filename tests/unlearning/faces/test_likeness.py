"""The same image under two names, saved again, is found; other images are not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from unlearning.faces import check_folder
from unlearning.faces.likeness import MOST_BITS, _near, lookalikes
from unlearning.faces.sources import synthetic


def saved_again(content: bytes, kind: str, scale: float = 1.0, **options: object) -> bytes:
    image, stream = Image.open(io.BytesIO(content)).convert("RGB"), io.BytesIO()
    image = image.resize((round(image.width * scale), round(image.height * scale)))
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    synthetic.write_folder(folder, n_subjects=20, images_per_subject=3, size=(64, 64), seed=3)
    return folder


def add(folder, name, content, user_id):
    (folder / name).write_bytes(content)
    with (folder / "metadata.csv").open("a") as table:
        table.write(f"{name},{user_id},age_1,train\n")


def test_different_images_are_no_pairs(folder):
    assert lookalikes(folder, check_folder(folder)) == []


@pytest.mark.parametrize(
    ("kind", "options"),
    [("JPEG", {"quality": 60}), ("WEBP", {"quality": 60}), ("PNG", {}), ("JPEG", {"scale": 2.0, "quality": 85})],
    ids=["jpeg", "webp", "png", "larger"],
)
def test_an_image_saved_again_under_another_name_is_found(folder, kind, options):
    rows = check_folder(folder)
    row = rows[7]
    again = saved_again((folder / row.file_name).read_bytes(), kind, **options)
    assert again != (folder / row.file_name).read_bytes()
    add(folder, f"again.{kind.lower()}", again, "somebody-else")
    add(folder, "own.png", saved_again(again, "PNG"), "somebody-else")
    pairs = lookalikes(folder, check_folder(folder))
    assert [(one.line, other.line) for one, other in pairs] == [(row.line, 62), (row.line, 63)]


def test_hashes_that_differ_in_few_bits_are_found_as_a_naive_comparison_finds_them():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 60, dtype=np.uint64)
    for place in range(1, 60, 3):
        flipped = rng.choice(64, rng.integers(0, 12), replace=False)
        hashes[place] = hashes[place - 1] ^ np.bitwise_or.reduce(np.uint64(1) << flipped.astype(np.uint64), initial=0)
    owners = np.arange(60) % 4
    naive = {
        (i, j)
        for i in range(60)
        for j in range(i + 1, 60)
        if owners[i] != owners[j] and int(hashes[i] ^ hashes[j]).bit_count() <= MOST_BITS
    }
    assert naive
    assert set(_near(hashes, owners)) == naive
