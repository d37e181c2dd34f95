"""Faces to learn from and to forget: the data folder, its packed arrays, and the destruction of people's pictures.

Adapters that write a data folder are modules of their own: `att`, `synthetic`, and, by way of `importing`, the layouts
`table`, `casia_surf`, `agedb` and `celeba`.
"""

from unlearning.faces.dataset import check_folder, count_subjects, read_metadata
from unlearning.faces.decoding import decode
from unlearning.faces.packing import Faces, pack
from unlearning.faces.removal import Held, Removal, find_held, remove_subjects
from unlearning.faces.rows import Row, Rows

__all__ = [
    "Faces", "Held", "Removal", "Row", "Rows", "check_folder", "count_subjects", "decode", "find_held", "pack",
    "read_metadata", "remove_subjects",
]  # fmt: skip
