"""Folders as Hugging Face's *imagefolder* and many others keep images: with a table, or with people as folders.

    metadata.csv or metadata.jsonl, in the folder or in each of train/, validation/ and test/
    yes/customer-7/0001.jpg                label and person are folders
    train/yes/customer-7/0001.jpg          the split as well

A table is read as in the layout `table`; the names in it start from the table's folder. Folders of splits may also have
the other names that `datasets` knows, such as `val` and `dev`. Files that are no JPEG, PNG or WebP by their names are
not looked at.
"""

from __future__ import annotations

from pathlib import Path

from unlearning.errors import FacesError
from unlearning.faces.dataset import Progress, left_by_macos
from unlearning.faces.decoding import SUFFIXES
from unlearning.faces.rows import Rows
from unlearning.faces.sources.importing import Found, write_found
from unlearning.faces.sources.table import Columns, read_table

TABLES = ("metadata.csv", "metadata.jsonl")
SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip


def write_folder(
    source: Path, folder: Path, *, columns: Columns | None = None, seed: int = 0, progress: Progress | None = None
) -> Rows:
    """Write the images of an imagefolder as a data folder.

    Args:
        source: The folder.
        folder: The data folder to make.
        columns: Of its tables, if it has some.
        seed: Of the split by person, where neither a folder nor a column holds it.
        progress: As `write_found`.

    Raises:
        FacesError: no images, folders of another depth, a row that breaks a rule; names the image by its number, or the
            table's line.
    """
    found = _of_tables(source, columns or Columns()) or _of_folders(source)
    return write_found(folder, found, seed=seed, progress=progress)


def _of_tables(source: Path, columns: Columns) -> list[Found]:
    """Images that tables name; none if there is no table."""
    folders: list[tuple[Path, str | None]] = [(source, None)]
    if not any((source / name).is_file() for name in TABLES):
        children = sorted(path for path in source.iterdir() if path.is_dir())
        folders = [(path, split) for path in children if (split := SPLIT_FOLDERS.get(path.name.lower()))]
    found: list[Found] = []
    for folder, split in folders:
        for table in (folder / name for name in TABLES):
            if table.is_file():
                found += read_table(table, folder, columns, split=None if columns.split else split)
    return found


def _of_folders(source: Path) -> list[Found]:
    """Images below folders of people."""
    names = sorted(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    images = [name for name in names if name.lower().endswith(SUFFIXES) and not left_by_macos(name)]
    if not images:
        raise FacesError(f"Expected images like LABEL/PERSON/0001.jpg in {source}, found none; give their folder.")
    return [_of_path(source, name, number) for number, name in enumerate(images, start=1)]


def _of_path(source: Path, name: str, number: int) -> Found:
    *above, _ = name.split("/")
    place = f"image {number} in the order of paths"  # a folder has a person's name
    split = SPLIT_FOLDERS.get(above[0].lower()) if above else None
    if len(above) != (2 if split is None else 3):
        raise FacesError(
            f"{place}: Expected LABEL/PERSON/IMAGE or SPLIT/LABEL/PERSON/IMAGE, got an image below {len(above)} "
            "folders; move it, or list the images with their person and label in a metadata.csv."
        )
    label, person = above[-2:]
    return Found(source / name, place, person, label, split)
