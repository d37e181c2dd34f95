"""Images that look the same under two people's names: the same image, saved again in another size or quality.

Files that are equal byte for byte are found by `check_folder`. Here every image has a perceptual hash of 64 bits
(`imagehash.phash`), and two that differ in few of them are compared as small grey images. Other images of one person do
not look the same; whether two people are one, nothing here can tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image

from unlearning.faces.dataset import read_image
from unlearning.faces.decoding import decode
from unlearning.faces.rows import Row, Rows
from unlearning.faces.threads import map_spans

MOST_BITS = 7  # in which two hashes may differ
MOST_DIFFERENCE = 6.0  # grey levels, in the mean over the small images; saving again as a poor JPEG costs 2 or 3
_SIDE = 32
_BANDS = MOST_BITS + 1  # of a hash: two that differ in at most MOST_BITS have one of these in common
_MOST_IN_A_BAND = 2_000  # images compared with each other; beyond it only with as many neighbours


def lookalikes(folder: Path, rows: Rows) -> list[tuple[Row, Row]]:
    """Pairs of rows of different subjects whose images look the same, in the order of the table.

    The folder has passed `check_folder`.

    Raises:
        FacesError, ImageError: a file was changed since.
    """
    hashes, done = np.zeros(len(rows), np.uint64), 0
    for batch in map_spans(lambda span: [_hash(_small(folder, rows[index])) for index in span], len(rows)):
        hashes[done : done + len(batch)] = batch
        done += len(batch)
    return [
        (rows[one], rows[other])
        for one, other in sorted(set(_near(hashes, rows.user_ids.positions)))
        if np.abs(_small(folder, rows[one]) - _small(folder, rows[other])).mean() <= MOST_DIFFERENCE
    ]


def _small(folder: Path, row: Row) -> np.ndarray:
    """An image as float32 `(32, 32)` greys."""
    return decode(read_image(folder, row), size=(_SIDE, _SIDE), channels=1)[..., 0].astype(np.float32)


def _hash(small: np.ndarray) -> np.uint64:
    bits = imagehash.phash(Image.fromarray(small.astype(np.uint8))).hash
    return np.packbits(bits.ravel()).view(np.uint64)[0]


def _near(hashes: np.ndarray, owners: np.ndarray) -> Iterator[tuple[int, int]]:
    """Positions, the smaller first, of hashes uint64 `(n,)` of different owners `(n,)` that differ in few bits."""
    width = 64 // _BANDS
    for band in range(_BANDS):
        keys = (hashes >> np.uint64(band * width)) & np.uint64((1 << width) - 1)
        order = np.argsort(keys, kind="stable")
        for group in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
            for start, one in enumerate(group[:-1]):
                others = group[start + 1 : start + 1 + _MOST_IN_A_BAND]
                differ = np.bitwise_count(hashes[others] ^ hashes[one])
                for other in others[(differ <= MOST_BITS) & (owners[others] != owners[one])]:
                    yield min(int(one), int(other)), max(int(one), int(other))
