"""AgeDB (Moschoglou et al., 2017): one folder of images whose names say who, how old and of which gender.

    0_MariaCallas_35_f.jpg            number, person, age, gender

The data come under a licence asked for by e-mail, so nothing is downloaded here. The label is the age at the image in
ten equal bins, as for CASIA-SURF, or the gender; splits are by person.
"""

from __future__ import annotations

import re
from pathlib import Path

from unlearning.errors import FacesError
from unlearning.faces.dataset import Progress, left_by_macos
from unlearning.faces.decoding import SUFFIXES
from unlearning.faces.rows import Rows
from unlearning.faces.sources.importing import Found, age_bins, write_found

LABELS = ("age", "gender")
_NAME = re.compile(r"(?P<number>\d+)_(?P<person>.+)_(?P<age>\d{1,3})_(?P<gender>[fm])", re.IGNORECASE)


def write_folder(
    source: Path, folder: Path, *, label: str = "age", seed: int = 0, progress: Progress | None = None
) -> Rows:
    """Write the images below `source` as a data folder.

    Args:
        source: Folder with the images, at any depth.
        folder: The data folder to make.
        label: "age" or "gender".
        seed: Of the split by person.
        progress: As `write_found`.

    Raises:
        FacesError: no images, a name of another form, a file that is no image; names the file's number.
    """
    if label not in LABELS:
        raise FacesError(f"Expected label out of {', '.join(LABELS)}, got {label!r}.")
    paths = sorted(
        path
        for path in source.rglob("*")
        if path.suffix.lower() in SUFFIXES and not left_by_macos(path.relative_to(source).as_posix())
    )
    if not paths:
        raise FacesError(f"Expected images like 0_MariaCallas_35_f.jpg in {source}, found none; give their folder.")
    parts = [_parts(number, path) for number, path in enumerate(paths, start=1)]
    ages = [int(part["age"]) for part in parts]
    bins = age_bins(min(ages), max(ages))
    found = [
        Found(path, _place(number), part["person"], bins[age] if label == "age" else part["gender"].lower())
        for number, (path, part, age) in enumerate(zip(paths, parts, ages, strict=True), start=1)
    ]
    return write_found(folder, found, seed=seed, progress=progress)


def _parts(number: int, path: Path) -> re.Match[str]:
    match = _NAME.fullmatch(path.stem)
    if match is None:
        raise FacesError(
            f"{_place(number)}: Expected a name like 0_MariaCallas_35_f.jpg, of number, person, age and gender; rename "
            "the file or take it out."
        )
    return match


def _place(number: int) -> str:
    """A file by its number in the order of paths, because its name contains a person's name."""
    return f"image {number} in the order of paths"
