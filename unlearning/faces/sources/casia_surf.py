"""CASIA-SURF (CeFA), the competition's faces, from its own layout to a data folder.

    Age_Gender.txt                                            one person a line: id age gender
    WBackground/<session>/<id>/real.rssdk/color/*.jpg         that person's images

The data come under a licence asked for by e-mail, so nothing is downloaded here. As in the competition the label is the
age in ten equal bins, edges `linspace(min_age, max_age + 1, 11)` over all people of the list; unlike there, the split
(80/10/10) is by person, since a person in train and test at once says nothing about people the model has not seen.
"""

from __future__ import annotations

from pathlib import Path

from unlearning.errors import FacesError
from unlearning.faces.dataset import Progress, left_by_macos
from unlearning.faces.rows import Rows
from unlearning.faces.sources.importing import Found, age_bins, read_lines, write_found
from unlearning.faces.writing import refuse_existing

AGES = "Age_Gender.txt"
_PATTERN = "WBackground/*/*/real.rssdk/color/*.jpg"


def write_folder(source: Path, folder: Path, *, seed: int = 0, progress: Progress | None = None) -> Rows:
    """Write the colour images of real faces as a data folder; the JPEG files are copied as they are.

    Args:
        source: Folder that holds `Age_Gender.txt` and `WBackground`.
        folder: The data folder to make.
        seed: Of the split by person.
        progress: Called with (images done, images in all).

    Returns:
        The rows written. User ids are those of the list; people of the list without images are left out.

    Raises:
        FacesError: no list, a line of it that cannot be read, no images, images of somebody who is not in the list,
            or `folder` already is a data folder.
    """
    refuse_existing(folder)
    ages = read_ages(source / AGES)
    paths = sorted(path for path in source.glob(_PATTERN) if not left_by_macos(path.name))
    if not paths:
        raise FacesError(f"Expected images at {source / _PATTERN}, found none; give the folder above WBackground.")
    people = [path.parents[2].name for path in paths]
    n_missing = sum(person not in ages for person in set(people))
    if n_missing:
        raise FacesError(
            f"Expected every person's age in {AGES}, but {n_missing} of {len(set(people))} are missing there."
        )
    labels = age_labels(ages)
    found = [
        Found(path, f"image {number} in the order of paths", person, labels[person])
        for number, (path, person) in enumerate(zip(paths, people, strict=True), start=1)
    ]
    return write_found(folder, found, seed=seed, progress=progress)


def read_ages(path: Path) -> dict[str, int]:
    """Ages in years by person, out of `Age_Gender.txt`; a first line of column names is passed over.

    Raises:
        FacesError: no such file, or a line without an id and an age.
    """
    ages: dict[str, int] = {}
    for number, line in enumerate(read_lines(path, "the list of ages"), start=1):
        fields = line.split()
        if not fields or (number == 1 and len(fields) > 1 and not fields[1].isdigit()):
            continue
        if len(fields) < 2 or not fields[1].isdigit() or fields[0] in ages:
            raise FacesError(f"{path.name}, line {number}: expected 'id age gender' and every id once; mend the line.")
        ages[fields[0]] = int(fields[1])
    if not ages:
        raise FacesError(f"Expected people in {path}, got an empty list.")
    return ages


def age_labels(ages: dict[str, int]) -> dict[str, str]:
    """Each person's age bin, named by the whole years in it, like `24-29`."""
    bins = age_bins(min(ages.values()), max(ages.values()))
    return {person: bins[age] for person, age in ages.items()}
