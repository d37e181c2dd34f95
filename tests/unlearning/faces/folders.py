"""Small images and tables for the tests of this room."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

Table = list[tuple[str, str, str, str]]
TABLE: Table = [
    ("images/a1.png", "ann", "glasses", "train"),
    ("images/a2.png", "ann", "no_glasses", "train"),
    ("images/b1.png", "bob", "no_glasses", "train"),
    ("images/b2.png", "bob", "glasses", "train"),
    ("images/c1.png", "cleo", "glasses", "test"),
]


def image_file(
    seed: int, size: tuple[int, int] = (12, 10), channels: int = 1, kind: str = "PNG", **options: object
) -> bytes:
    """Bytes of a small image nobody else has."""
    shape = size if channels == 1 else (*size, channels)
    pixels = np.random.default_rng(seed).integers(1, 256, size=shape, dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format=kind, **options)
    return out.getvalue()


def write_table(folder: Path, table: Table, header: str = "file_name,user_id,label,split") -> None:
    """metadata.csv of these rows."""
    lines = [header, *(",".join(row) for row in table)]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
