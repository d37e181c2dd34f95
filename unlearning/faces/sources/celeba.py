"""CelebA (Liu et al., 2015): a folder of images and three lists beside it, in its own layout or flat.

    identity_CelebA.txt         000001.jpg 2880                      whose image it is
    list_attr_celeba.txt        number of images, names of 40 attributes, then 000001.jpg -1 1 …
    list_eval_partition.txt     000001.jpg 0                         0 train, 1 validation, 2 test; by person

Expunge needs every person in one split. A partition that has somebody in two, as that of a subset or another copy may,
is refused; without the partition list people are split at random.

The data are for research only and are not downloaded here. The label is one attribute, `eyeglasses` or
`no_eyeglasses`.
"""

from __future__ import annotations

from pathlib import Path

from unlearning.errors import FacesError
from unlearning.faces.dataset import SPLITS, Progress
from unlearning.faces.rows import Rows
from unlearning.faces.sources.importing import Found, TwoSplitsError, read_lines, write_found

IDENTITIES, ATTRIBUTES, PARTITION = "identity_CelebA.txt", "list_attr_celeba.txt", "list_eval_partition.txt"
IMAGE_FOLDERS = ("img_align_celeba", "Img/img_align_celeba", ".")
LISTS = (".", "Anno", "Eval")


def write_folder(
    source: Path, folder: Path, *, label: str = "Eyeglasses", seed: int = 0, progress: Progress | None = None
) -> Rows:
    """Write the images of the list of identities as a data folder.

    Args:
        source: Folder that holds the lists (or `Anno` and `Eval` with them) and `img_align_celeba`.
        folder: The data folder to make.
        label: Name of an attribute.
        seed: Of the split by person, where there is no partition list.
        progress: As `write_found`.

    Raises:
        FacesError: a list that is missing or has a wrong line, an attribute that is not there, an image without one, a
            file that is missing or no image; names list and line.
    """
    identities, attributes = _find(source, IDENTITIES), _find(source, ATTRIBUTES)
    folder_of_images = next((source / name for name in IMAGE_FOLDERS if list((source / name).glob("*.jpg"))), None)
    if identities is None or attributes is None:
        raise FacesError(f"Expected {IDENTITIES} and {ATTRIBUTES} in {source}, or in its folder Anno; put both there.")
    if folder_of_images is None:
        raise FacesError(
            f"Expected images in {source / IMAGE_FOLDERS[0]}, found none; unpack img_align_celeba.zip there."
        )
    labels = read_attribute(attributes, label)
    partition = _find(source, PARTITION)
    splits = read_partition(partition) if partition else {}
    found = []
    for line, (name, person) in _pairs(identities, "an image and a number of a person"):
        place = f"{IDENTITIES}, line {line}"
        if name not in labels:
            raise FacesError(f"{place}: Expected the attributes of this image in {ATTRIBUTES}; add its line there.")
        if partition and name not in splits:
            raise FacesError(f"{place}: Expected the split of this image in {PARTITION}; add its line there.")
        found.append(Found(folder_of_images / name, place, f"celeba-{person}", labels[name], splits.get(name)))
    if not found:
        raise FacesError(f"Expected images in {IDENTITIES}, got an empty list.")
    try:
        return write_found(folder, found, seed=seed, progress=progress)
    except TwoSplitsError as error:
        raise FacesError(f"{error} Or take {PARTITION} away: people are then split at random.") from error


def read_attribute(path: Path, label: str) -> dict[str, str]:
    """Label of each image by one attribute: its name in lower case, or that with `no_` before it.

    Raises:
        FacesError: no such attribute, or a line without one value an attribute.
    """
    lines = read_lines(path, "the list of attributes")
    names = lines[1].split() if len(lines) > 1 else []
    if label not in names:
        raise FacesError(
            f"{path.name}, line 2: Expected the attribute {label!r}; there are {', '.join(names) or 'none'}."
        )
    column, positive = names.index(label) + 1, label.lower()
    words = {"1": positive, "-1": f"no_{positive}"}
    labels = {}
    for number, line in enumerate(lines[2:], start=3):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != len(names) + 1 or fields[column] not in words:
            raise FacesError(
                f"{path.name}, line {number}: Expected an image and {len(names)} values 1 or -1, got "
                f"{len(fields) - 1} values; mend the line."
            )
        labels[fields[0]] = words[fields[column]]
    return labels


def read_partition(path: Path) -> dict[str, str]:
    """Split of each image.

    Raises:
        FacesError: a line without an image and 0, 1 or 2.
    """
    splits = {}
    for number, (name, part) in _pairs(path, "an image and 0, 1 or 2"):
        if part not in ("0", "1", "2"):
            raise FacesError(f"{path.name}, line {number}: Expected an image and 0, 1 or 2; mend the line.")
        splits[name] = SPLITS[int(part)]
    return splits


def _pairs(path: Path, what: str) -> list[tuple[int, tuple[str, str]]]:
    """Line number, first and second word of each line; every image once."""
    pairs: list[tuple[int, tuple[str, str]]] = []
    seen: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, f"the list {path.name}"), start=1):
        fields = line.split()
        if not fields:
            continue
        if len(fields) != 2 or not fields[1].isdigit() or not _is_name(fields[0]):
            raise FacesError(f"{path.name}, line {number}: Expected {what}; mend the line.")
        twin = seen.setdefault(fields[0], number)
        if twin != number:
            raise FacesError(
                f"{path.name}, line {number}: This image is already in line {twin}; take one of the two out."
            )
        pairs.append((number, (fields[0], fields[1])))
    return pairs


def _is_name(text: str) -> bool:
    return "/" not in text and "\\" not in text and not text.startswith(".")


def _find(source: Path, name: str) -> Path | None:
    return next((source / folder / name for folder in LISTS if (source / folder / name).is_file()), None)
