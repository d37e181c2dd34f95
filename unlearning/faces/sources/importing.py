"""Import of images in another layout into a data folder; every rule is checked before anything is written.

The layouts (`table`, `agedb`, `celeba`, `casia_surf`) list the images with their subjects and labels; this module
checks and writes them. A failure names the place in the source, a line or the number of a file, and the remedy, never a
subject. The result is a complete data folder or none.
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np

from unlearning.errors import FacesError, ImageError
from unlearning.faces.dataset import MOST_LISTED, SPLITS, Progress, is_clean, raise_all
from unlearning.faces.decoding import MAX_BYTES, SUFFIXES, check_image
from unlearning.faces.rows import Rows
from unlearning.faces.threads import map_spans
from unlearning.faces.writing import NewImage, refuse_existing, split_people, write_images

N_BINS = 10


class TwoSplitsError(FacesError):
    """A person is in two splits of the source."""


@dataclass(frozen=True, slots=True)
class Found:
    """One image of a source.

    Args:
        path: The file.
        place: Where the source lists it, like `people.csv, line 3`; every message about it begins with this.
        user_id, label: As in the table of a data folder.
        split: One of the splits; None to draw the splits of all subjects at random.
    """

    path: Path
    place: str
    user_id: str
    label: str
    split: str | None = None


def write_found(folder: Path, found: Sequence[Found], *, seed: int = 0, progress: Progress | None = None) -> Rows:
    """Write images of a source as a data folder; files are copied as they are.

    Args:
        folder: The data folder to make.
        found: All with a split, or all without.
        seed: Of the splits by person, where the source has none.
        progress: Called with (images looked at and written, twice the number of images).

    Raises:
        FacesError: `folder` already is a data folder; a subject in two splits, fewer than two classes, no training
            image; files that are missing, no image or damaged, all of them up to `MOST_LISTED`; a file that is listed
            for two subjects.
    """
    refuse_existing(folder)
    total = len(found)
    splits = _splits(found, seed)
    _check_words(found, splits)
    _check_images(found, progress)

    def copies() -> Iterator[NewImage]:
        for each in found:
            content = each.path.read_bytes()
            yield NewImage(content, each.path.suffix.lower(), each.user_id, each.label, splits[each.user_id])

    def written(done: int, _: int) -> None:
        if progress is not None:
            progress(total + done, 2 * total)

    return write_images(folder, copies(), total=total, progress=written)


def _splits(found: Sequence[Found], seed: int) -> dict[str, str]:
    """Split of every subject."""
    people = sorted({each.user_id for each in found})
    if all(each.split is None for each in found):
        return dict(zip(people, split_people(len(people), seed=seed).tolist(), strict=True))
    first: dict[str, Found] = {}
    for each in found:
        if each.split not in SPLITS:
            raise FacesError(f"{each.place}: Expected a split out of {', '.join(SPLITS)}; mend it.")
        before = first.setdefault(each.user_id, each)
        if before.split != each.split:
            raise TwoSplitsError(
                f"{each.place}: This person is in split {each.split} here and in {before.split} at {before.place}; "
                "give all images of a person one split, else the test set holds people the model has seen."
            )
    return {person: str(each.split) for person, each in first.items()}


def _check_words(found: Sequence[Found], splits: dict[str, str]) -> None:
    for each in found:
        for what, value in (("person", each.user_id), ("label", each.label)):
            if not value:
                raise FacesError(f"{each.place}: Expected a {what}, got nothing; fill it in or take it out.")
            if not is_clean(value):
                raise FacesError(
                    f"{each.place}: Expected a {what} without blanks around it or control characters, in Unicode form "
                    "NFC; mend it."
                )
    if len({each.label for each in found}) < 2:
        raise FacesError("Expected at least two classes, but every image has the same label; choose another label.")
    if "train" not in splits.values():
        raise FacesError("Expected people to train on, but nobody is in split train.")


def _check_images(found: Sequence[Found], progress: Progress | None) -> None:
    """Check that every file can be decoded and that no image belongs to two subjects."""

    def digests(span: range) -> list[bytes | FacesError]:
        return [_digest(found[index]) for index in span]

    seen: dict[bytes, Found] = {}
    errors: list[FacesError] = []
    done = n_errors = 0
    for batch in map_spans(digests, len(found)):
        for each, digest in zip(found[done : done + len(batch)], batch, strict=True):
            if isinstance(digest, FacesError):
                n_errors += 1
                errors += [digest] if n_errors <= MOST_LISTED else []
                continue
            if n_errors:
                continue  # what is wrong further up comes first
            twin = seen.setdefault(digest, each)
            if twin.user_id != each.user_id:
                raise FacesError(
                    f"{each.place}: The same image belongs to another person at {twin.place}; erasing one would "
                    "leave it with the other, so take one of the two out."
                )
        done += len(batch)
        if progress is not None:
            progress(done, 2 * len(found))
    raise_all(errors, n_errors)


def _digest(each: Found) -> bytes | FacesError:
    """SHA-256 of a file, or why it cannot be read or decoded."""
    if not each.path.name.lower().endswith(SUFFIXES):
        return FacesError(f"{each.place}: Expected a file ending in one of {', '.join(SUFFIXES)}; convert it.")
    try:
        with each.path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        check_image(content)
    except FileNotFoundError:
        return FacesError(f"{each.place}: The file named here is missing; put it there or take the line out.")
    except OSError as error:
        return FacesError(f"{each.place}: The file named here cannot be read ({error.strerror}).")
    except ImageError as error:
        return FacesError(f"{each.place}: {error} Replace the file or take it out.")
    return sha256(content).digest()


def read_text(path: Path, what: str) -> str:
    """A text file of the source: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        FacesError: it cannot be read, or has another encoding.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FacesError(f"Expected {what} at {path}: {error.strerror}.") from error
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise FacesError(
            f"{path.name}, line {line}: Expected UTF-8 text, found another encoding, as office programs write it where "
            "they are not told; save the table as “CSV UTF-8”."
        ) from error


def read_lines(path: Path, what: str) -> list[str]:
    """Lines of a text file of the source.

    Raises:
        FacesError: as `read_text`.
    """
    return io.StringIO(read_text(path, what), newline=None).read().split("\n")


def age_bins(low: int, high: int) -> dict[int, str]:
    """Each age from `low` to `high` → its tenth of that range, named by the whole years in it, like `24-29`.

    As in the NeurIPS 2023 unlearning competition: edges `linspace(low, high + 1, 11)`.
    """
    edges = np.linspace(low, high + 1, N_BINS + 1)
    years = np.arange(low, high + 1)
    bins = np.digitize(years, edges[1:-1])  # bin i holds edges[i] <= year < edges[i + 1]
    inside = [years[bins == number] for number in range(N_BINS)]
    names = [f"{held[0]:02d}-{held[-1]:02d}" if len(held) else "" for held in inside]
    return {int(year): names[number] for year, number in zip(years, bins, strict=True)}
