"""CelebA's lists, on made-up images."""

from __future__ import annotations

import pytest

from tests.unlearning.faces.folders import image_file
from unlearning.errors import FacesError
from unlearning.faces import check_folder
from unlearning.faces.sources.celeba import write_folder


@pytest.fixture(params=["flat", "its own folders"])
def source(tmp_path, request):
    source = tmp_path / "CelebA"
    flat = request.param == "flat"
    images = source / ("img_align_celeba" if flat else "Img/img_align_celeba")
    lists, parts = (source, source) if flat else (source / "Anno", source / "Eval")
    for folder in (images, lists, parts):
        folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:06d}.jpg" for number in range(1, 13)]
    for number, name in enumerate(names):
        (images / name).write_bytes(image_file(number, channels=3, kind="JPEG"))
    (lists / "identity_CelebA.txt").write_text("".join(f"{name} {i // 3}\n" for i, name in enumerate(names)))
    values = "".join(f"{name}  {1 if i % 2 else -1} -1\n" for i, name in enumerate(names))
    (lists / "list_attr_celeba.txt").write_text("12\nEyeglasses Smiling\n" + values)
    split = (0, 0, 1, 2)
    (parts / "list_eval_partition.txt").write_text("".join(f"{name} {split[i // 3]}\n" for i, name in enumerate(names)))
    return source


def find(source, name):
    (path,) = source.rglob(name)
    return path


def edit(path, line, text):
    lines = path.read_text().splitlines()
    lines[line - 1 : line] = [] if text is None else [text]
    path.write_text("\n".join(lines) + "\n")


def test_lists_say_who_what_and_which_split(source, tmp_path):
    rows = write_folder(source, tmp_path / "data")
    assert check_folder(tmp_path / "data") == rows
    assert {row.label for row in rows} == {"eyeglasses", "no_eyeglasses"}
    assert [row.split for row in rows] == ["train"] * 6 + ["validation"] * 3 + ["test"] * 3
    assert rows[0].user_id == "celeba-0"


def test_without_a_partition_people_are_split_at_random(source, tmp_path):
    find(source, "list_eval_partition.txt").unlink()
    rows = write_folder(source, tmp_path / "data", seed=2)
    assert check_folder(tmp_path / "data") == rows
    assert {row.split for row in rows} == {"train", "validation", "test"}


@pytest.mark.parametrize(
    ("where", "text", "sentence"),
    [
        (("identity_CelebA.txt", 2), "000002.jpg", r"identity_CelebA.txt, line 2: Expected an image and a number"),
        (("identity_CelebA.txt", 2), "../x.jpg 1", r"identity_CelebA.txt, line 2: Expected an image"),
        (("identity_CelebA.txt", 2), "000001.jpg 1", r"line 2: This image is already in line 1"),
        (
            ("identity_CelebA.txt", 2),
            "000002.jpg 3",
            r"identity_CelebA.txt, line 10: This person is in split test here.*Or take list_eval_partition.txt away",
        ),
        (("identity_CelebA.txt", 2), "000099.jpg 1", r"identity_CelebA.txt, line 2: Expected the attributes"),
        (("list_attr_celeba.txt", 4), "000002.jpg 1", r"list_attr_celeba.txt, line 4: Expected an image and 2 values"),
        (("list_attr_celeba.txt", 4), "000002.jpg 0 1", r"list_attr_celeba.txt, line 4: .* 1 or -1"),
        (("list_eval_partition.txt", 3), "000003.jpg 7", r"list_eval_partition.txt, line 3: .* 0, 1 or 2"),
        (("list_eval_partition.txt", 3), None, r"identity_CelebA.txt, line 3: Expected the split of this image"),
    ],
)
def test_a_wrong_line_is_named_with_the_remedy(source, tmp_path, where, text, sentence):
    name, line = where
    edit(find(source, name), line, text)
    with pytest.raises(FacesError, match=sentence):
        write_folder(source, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_what_is_missing_is_said(source, tmp_path):
    with pytest.raises(FacesError, match=r"attribute 'Hat'; there are Eyeglasses, Smiling"):
        write_folder(source, tmp_path / "data", label="Hat")
    find(source, "000005.jpg").unlink()
    with pytest.raises(FacesError, match=r"identity_CelebA.txt, line 5: The file named here is missing"):
        write_folder(source, tmp_path / "data")
    for path in source.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(FacesError, match=r"unpack img_align_celeba\.zip"):
        write_folder(source, tmp_path / "data")
    find(source, "list_attr_celeba.txt").unlink()
    with pytest.raises(FacesError, match="put both there"):
        write_folder(source, tmp_path / "data")
