"""Packed faces: every image decoded and resized once into one memory-mapped array.

A pack is a folder `packed-<key>` with `images.npy`, uint8 `(n, height, width, channels)`, `digests.npy`, uint8
`(n, 32)` with the SHA-256 of each image's pixels, and `pack.json`. The key is a digest of the table, of every image
file's content, of size, channels and decoder, so a changed folder is a miss and never a stale hit. Names, labels and
subjects are not packed but read from the table at every load.

Packs contain subjects' pixels, so an erasure destroys them. Where packs outside the data folder lie is recorded in the
folder (`.packed/elsewhere.txt`) before one is made or used, so that an erasure finds them, also after both were moved.
The record says by which folder it was written: copied with a folder, it speaks of packs that are another one's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from hashlib import file_digest, sha256
from pathlib import Path

import numpy as np
import PIL

from unlearning import files
from unlearning.errors import FacesError, ImageError
from unlearning.faces.arrays import DIGESTS, Faces, digests_of
from unlearning.faces.checking import check_folder
from unlearning.faces.dataset import METADATA, SPLITS, Progress, read_image, read_rows
from unlearning.faces.decoding import RULES, Proportions, decode
from unlearning.faces.exclusion import opening
from unlearning.faces.memory import give_back_memory
from unlearning.faces.processes import map_calls
from unlearning.faces.rows import Row, Rows
from unlearning.faces.threads import map_spans

PACKED = ".packed"
ELSEWHERE = "elsewhere.txt"
_FINISHED, UNFINISHED = "packed-", ".packing-"
_PART = 256  # faces a process decodes at a time
MANY = 20_000  # faces; below, processes take longer to start than they gain


def pack(
    folder: Path,
    *,
    size: tuple[int, int],
    channels: int,
    proportions: Proportions = "stretch",
    cache: Path | None = None,
    classes: Sequence[str] | None = None,
    verify: bool = True,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Faces:
    """Faces of a data folder as arrays, decoded only if no pack of exactly this content exists.

    Waits while subjects are removed from the folder; a later removal destroys the pack (`Faces.is_intact`).

    Args:
        folder: The data folder; it gets the fast check first.
        size: (height, width) in pixels.
        channels: 1 for grey, 3 for colour.
        proportions: As of `decode`.
        cache: Where packs lie; None for `.packed` in the folder.
        classes: Names of the labels in the order of a model's outputs; None for those found, sorted. An erasure may
            remove the last image of a class, so pass a trained model's classes to keep its label positions.
        verify: Whether an existing pack is compared with its own SHA-256.
        workers: Decoding threads; None for one per core, or as many processes for many images.
        progress: Called with (images done, images in all).

    Returns:
        Faces in the order of the table.

    Raises:
        FacesError: the folder breaks a rule, an image cannot be decoded, or a label is not among `classes`.
    """
    if channels not in (1, 3) or min(size) < 1:
        raise FacesError(f"Expected size of at least (1, 1) and channels 1 or 3, got size={size}, channels={channels}.")
    with opening(folder) as removal:
        rows = check_folder(folder, decode=False, classes_known=classes is not None)
        names = tuple(classes) if classes is not None else tuple(sorted(rows.labels.values))
        _check_labels(rows, names)
        cache = folder / PACKED if cache is None else cache
        shape = (len(rows), *size, channels)
        images, manifest = _packed(
            folder, rows, shape, proportions, cache, verify=verify, workers=workers, progress=progress
        )
    people = tuple(sorted(rows.user_ids.values))
    faces = Faces(
        images=images,
        labels=rows.labels.positions_in(names, np.int64),
        classes=names,
        subject_of=rows.user_ids.positions_in(people, np.int32),
        people=people,
        split_of=rows.splits.positions_in(SPLITS, np.uint8),
        manifest_digest=manifest,
        folder=folder,
        removal=removal,
    )
    del rows
    give_back_memory()
    return faces


def _packed(
    folder: Path,
    rows: Rows,
    shape: tuple[int, ...],
    proportions: Proportions,
    cache: Path,
    *,
    verify: bool,
    workers: int | None,
    progress: Progress | None,
) -> tuple[np.ndarray, str]:
    """Pixels of the rows' files, uint8 of `shape`, out of a pack that is made if there is none; the manifest digest."""
    digests = _file_digests(folder, rows, workers)
    manifest = manifest_digest(rows, digests)
    _note(folder, cache)
    _, height, width, channels = shape
    decoder = f"Pillow {PIL.__version__} pack {RULES}"
    fitted = "" if proportions == "stretch" else f" {proportions}"
    key = sha256(f"{manifest} {height}x{width}x{channels}{fitted} {decoder}".encode()).hexdigest()
    place = cache / f"{_FINISHED}{key[:32]}"
    images = _load(place, shape, verify)
    if images is not None:
        if progress is not None:
            progress(len(rows), len(rows))
        return images, manifest
    _build(
        _decoded(folder, rows, digests, shape, proportions=proportions, workers=workers),
        place,
        shape,
        progress=progress,
    )
    images = _load(place, shape, verify)
    if images is None:
        raise FacesError("The packed faces were damaged while they were written; look at the disk and try again.")
    return images, manifest


def manifest_digest(rows: Sequence[Row], file_digests: np.ndarray) -> str:
    """SHA-256 in hex over the table's rows in order, each as one line of JSON with its file's SHA-256, `(n, 32)`."""
    total, encoder = sha256(b"expunge faces 1\n"), json.JSONEncoder(separators=(",", ":"))
    for row, digest in zip(rows, file_digests, strict=True):
        fields = [row.file_name, row.user_id, row.label, row.split, digest.tobytes().hex()]
        total.update(encoder.encode(fields).encode() + b"\n")
    return total.hexdigest()


def folder_digest(folder: Path, *, workers: int | None = None) -> str:
    """Manifest digest of a data folder as it is now, without packing it; the rules between rows need not hold.

    Raises:
        FacesError: no readable table, or a file of it is missing.
    """
    rows = read_rows(folder)
    return manifest_digest(rows, _file_digests(folder, rows, workers))


def find_packs(folder: Path, cache: Path | None = None) -> Iterator[Path]:
    """All packs made from a data folder, finished or not: in the folder, in `cache`, and in caches that it recorded."""
    caches, seen = [folder / PACKED, *([] if cache is None else [cache]), *_recorded(folder)], set[Path]()
    for each in caches:
        if each.is_dir() and (place := each.resolve()) not in seen:
            seen.add(place)
            yield from sorted(path for path in each.iterdir() if path.name.startswith((_FINISHED, UNFINISHED)))


def _recorded(folder: Path) -> list[Path]:
    """Caches outside the data folder that it recorded, but not those of a folder that is elsewhere and was copied."""
    note = folder / PACKED / ELSEWHERE
    by: dict[str, set[str]] = {}
    for line in note.read_text(encoding="utf-8").splitlines() if note.exists() else ():
        said = json.loads(line)
        if isinstance(said, str):  # of an earlier release, which did not say by whom
            by.setdefault(said, set())
        else:
            by.setdefault(said["cache"], set()).add(said["folder"])
    found = []
    for cache, folders in by.items():
        there = [Path(each) for each in folders if (Path(each) / METADATA).exists()]
        if not there or any(each.samefile(folder) for each in there):  # moved, or here under this path or another
            found.append(Path(cache))
    return found


def _check_labels(rows: Rows, classes: tuple[str, ...]) -> None:
    for label in rows.labels.values:
        if label not in classes:
            raise FacesError(
                f"Expected a label out of {len(classes)} known ones, got {label!r}; mend it, or train a new model.",
                row=rows[rows.labels.first(label)].line,
            )


def _file_digests(folder: Path, rows: Rows, workers: int | None) -> np.ndarray:
    """SHA-256 of every image file, uint8 `(n, 32)`."""

    def digests_of(span: range) -> bytes:
        return b"".join(sha256(read_image(folder, rows[index])).digest() for index in span)

    digests, done = np.empty((len(rows), 32), np.uint8), 0
    for found in map_spans(digests_of, len(rows), workers=workers):
        digests[done : done + len(found) // 32] = np.frombuffer(found, np.uint8).reshape(-1, 32)
        done += len(found) // 32
    return digests


def _load(place: Path, shape: tuple[int, ...], verify: bool) -> np.ndarray | None:
    """The pack's array, or None where there is none, or a damaged one."""
    try:
        about = json.loads((place / "pack.json").read_text(encoding="utf-8"))
        for name in ("images", "digests") if verify else ():
            if _digest(place / f"{name}.npy") != about[f"{name}_sha256"]:
                return None
        images = np.load(place / "images.npy", mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return images if images.shape == shape and images.dtype == np.uint8 else None


def _face(folder: Path, row: Row, digest: np.ndarray, shape: tuple[int, ...], proportions: Proportions) -> np.ndarray:
    """A row's image, uint8 `shape[1:]`, after checking that the key was made from it."""
    data = read_image(folder, row)
    if sha256(data).digest() != digest.tobytes():
        raise FacesError("The file changed while it was packed; try again.", row=row.line)
    try:
        return decode(data, size=(shape[1], shape[2]), channels=shape[3], proportions=proportions)
    except ImageError as error:
        raise FacesError(f"{error} Replace the file or take the line out.", row=row.line) from error


def _decoded(
    folder: Path,
    rows: Rows,
    digests: np.ndarray,
    shape: tuple[int, ...],
    *,
    proportions: Proportions,
    workers: int | None,
) -> Iterator[np.ndarray]:
    """Every image in order, in arrays of uint8 `(k, *shape[1:])`."""
    n_cores = len(os.sched_getaffinity(0))
    if workers is not None or n_cores == 1 or len(rows) < MANY:
        yield from map_spans(
            lambda span: _faces(
                folder, rows[span.start : span.stop], digests[span.start : span.stop], shape, proportions
            ),
            len(rows),
            workers=workers,
        )
        return
    parts = (slice(start, start + _PART) for start in range(0, len(rows), _PART))
    calls = ((folder, rows[part], digests[part], shape, proportions) for part in parts)
    yield from map_calls(_faces, calls, workers=n_cores)


def _faces(
    folder: Path, rows: Sequence[Row], digests: np.ndarray, shape: tuple[int, ...], proportions: Proportions
) -> np.ndarray:
    """Some rows' images, uint8 `(k, *shape[1:])`."""
    pairs = zip(rows, digests, strict=True)
    return np.stack([_face(folder, row, digest, shape, proportions) for row, digest in pairs])


def _build(decoded: Iterable[np.ndarray], place: Path, shape: tuple[int, ...], *, progress: Progress | None) -> None:
    """Make a pack of the images `decoded` beside `place`, then move it there at once."""
    with files.scratch(place.parent, UNFINISHED) as work:
        made = work / "pack"
        made.mkdir()
        # Written, not mapped: a full disk is then an error here and no signal that kills the process.
        with (made / "images.npy").open("wb") as images, (made / DIGESTS).open("wb") as digests:
            for file, of_file in ((images, shape), (digests, (shape[0], 32))):
                np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": of_file})
            done = 0
            for pixels in decoded:
                images.write(pixels.data)
                digests.write(digests_of(pixels).data)
                done += len(pixels)
                if progress is not None:
                    progress(done, shape[0])
        about = {f"{name}_sha256": _digest(made / f"{name}.npy") for name in ("images", "digests")}
        (made / "pack.json").write_text(json.dumps(about) + "\n", encoding="utf-8")
        try:
            os.rename(made, place)
        except OSError:
            # Another process moved the same pack there first, and may be reading it; or the one there is damaged.
            if _load(place, shape, verify=True) is None:
                files.destroy_folder(place)
                os.rename(made, place)


def _note(folder: Path, cache: Path) -> None:
    """Make the cache, and record one outside the data folder, with the folder, so that an erasure finds it."""
    try:
        cache.mkdir(parents=True, exist_ok=True)
        place = cache.resolve()
        home = folder / PACKED
        if place == home.resolve():
            return
        home.mkdir(exist_ok=True)
        note = home / ELSEWHERE
        line = json.dumps({"cache": str(place), "folder": str(folder.resolve())}) + "\n"
        if not note.exists() or line not in note.read_text(encoding="utf-8").splitlines(keepends=True):
            with note.open("a", encoding="utf-8") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())  # a pack that outlived its note would outlive the person
    except OSError as error:
        raise FacesError(
            f"Expected to write in {cache} and in {folder}, which notes where packed copies lie so that an erasure "
            f"finds them: {error.strerror}."
        ) from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
