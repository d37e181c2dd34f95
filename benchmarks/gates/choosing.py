"""Which statistic of a candidate's margins the gate is to be of: compared on subjects for tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from audit.statistics.gate import ALPHA, UPPER_SHARE
from benchmarks.gates.judging import CLASSES, shift
from benchmarks.gates.models import Margins, Set

Statistic = Callable[[np.ndarray], np.ndarray]


def _lowest(values: np.ndarray) -> np.ndarray:
    """Mean of the lowest third over the last axis."""
    return np.sort(values, axis=-1)[..., : -(-values.shape[-1] // 3)].mean(axis=-1)


STATISTICS: dict[str, Statistic] = {
    "mean of all margins": lambda m: m.mean(axis=(-1, -2)),
    "lowest third of all margins in one heap": lambda m: _lowest(m.reshape(*m.shape[:-2], -1)),
    "lowest third of the images' means over views": lambda m: _lowest(m.mean(axis=-2)),
    "lowest third of the images' medians over views": lambda m: _lowest(np.median(m, axis=-2)),
    "mean over views of each view's lowest third": lambda m: _lowest(m).mean(axis=-1),
    "lowest third of the images as they are": lambda m: _lowest(m[..., 0, :]),
    "−log of the mean log loss": lambda m: -np.log(np.logaddexp(0, -m).mean(axis=(-1, -2))),
}


def choose(set_: Set, subjects: Sequence[Margins], n_references: int = 8) -> None:
    """Upper side only: false positive rate and power of each statistic over the tuning subjects.

    Classes are by the mean of the statistics' d′, so that none of them says who is counted.
    """
    subjects = [subject for subject in subjects if subject.subject in set_.tuning and len(subject.out) > n_references]
    if not subjects:
        print(f"  no tuning subject has more than {n_references} models yet")
        return
    level = ALPHA * UPPER_SHARE
    learned = np.array([[shift(f(one.out), f(one.in_)) for one in subjects] for f in STATISTICS.values()])
    d = learned.mean(axis=0)
    for (name, statistic), own in zip(STATISTICS.items(), learned, strict=True):
        rng = np.random.default_rng(0)
        rates = []
        for subject in subjects:
            out, in_ = statistic(subject.out), statistic(subject.in_)
            found = []
            for _ in range(50):
                order = rng.permutation(len(out))
                bank, rest = out[order[:n_references]], out[order[n_references:]]
                scale = bank.std(ddof=1) * np.sqrt(1 + 1 / n_references)
                critical = bank.mean() + stats.t.isf(level, n_references - 1) * scale
                found.append((np.mean(rest > critical), np.mean(in_ > critical)))
            rates.append(np.mean(found, axis=0))
        table = np.array(rates)
        classes = []
        for bottom, top in CLASSES:
            inside = (d >= bottom) & (d < top)
            if inside.any():
                classes.append(f"d′ {bottom:g} to {top:g} ({inside.sum()}) {table[inside, 1].mean():.2f}")
        print(
            f"  {name:47} mean d′ {own.mean():.2f}, false positives {table[:, 0].mean():.3f} of {level:.3f}, "
            f"power: {'; '.join(classes)}"
        )
