"""Blocks of subjects. A subject is judged by reference models trained without the subject's whole block."""

from __future__ import annotations

import math
from collections.abc import Iterable

from audit.errors import OptionError


def assign_blocks(subject_hashes: Iterable[str], *, share: float = 0.05) -> dict[str, int]:
    """Block of each subject: subjects in the order of their keyed hashes, cut into blocks of nearly equal size.

    No block has more than max(1, ⌊share · n⌋) of the n subjects. The assignment depends on the set of subjects: store
    it beside the banks, and do not compute it again after an erasure.

    Args:
        subject_hashes: keyed hash of each subject (with an unkeyed hash subjects could choose their block).
        share: largest share of the subjects in one block, in (0, 1].

    Returns:
        Block number, counted from 0, by keyed hash.

    Raises:
        OptionError: share out of range.
    """
    if not 0 < share <= 1:
        raise OptionError(f"Expected share={share} in (0, 1].")
    ordered = sorted(set(subject_hashes))
    size = max(1, math.floor(share * len(ordered)))
    n_blocks = math.ceil(len(ordered) / size)
    return {subject: i * n_blocks // len(ordered) for i, subject in enumerate(ordered)}
