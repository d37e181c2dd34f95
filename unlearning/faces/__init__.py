"""Faces: the data folder, its packed arrays, and the destruction of subjects' images.

`unlearning.faces.sources` has the importers and generators that write a data folder.
"""

from unlearning.faces.arrays import Faces
from unlearning.faces.checking import check_folder
from unlearning.faces.dataset import count_subjects, read_metadata
from unlearning.faces.decoding import decode
from unlearning.faces.packing import pack
from unlearning.faces.removal import Held, Removal, find_held, remove_subjects
from unlearning.faces.rows import Row, Rows

__all__ = [
    "Faces", "Held", "Removal", "Row", "Rows", "check_folder", "count_subjects", "decode", "find_held", "pack",
    "read_metadata", "remove_subjects",
]  # fmt: skip
