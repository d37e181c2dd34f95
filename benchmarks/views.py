"""Forgetting in every view of an image: what a bar on the worst view rejects.

    python benchmarks/views.py [--set att|drawn] [--folder FOLDER] [--draws N]

Reads the margins that `benchmarks/gate.py` keeps in the folder and trains nothing. For each subject, F / F_null in each
of the ten views, by as many models a side as there are up to 24, the number of a qualification: of models retrained
without the subject against others of them (false positives), of originals, which forgot nothing (power), and of the
runs of methods. Prints how often the figure of the images as they are, and that of the worst view, lies below a bar.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402

import numpy as np  # noqa: E402

from audit.statistics.forgetting import forgetting_ratio  # noqa: E402
from audit.statistics.intervals import clopper_pearson  # noqa: E402
from audit.statistics.spread import tail_mean  # noqa: E402
from benchmarks.gates.models import SETS, margins_of, opened  # noqa: E402

N_MODELS = 24
BARS = (0.5, 0.6, 0.65, 0.7, 0.8)


def ratios(models: np.ndarray, references: np.ndarray, seed: int) -> np.ndarray:
    """F / F_null in each view, `(n_views,)`, of `(n, n_views, n_images)` against references of the same shape."""
    return np.array(
        [
            forgetting_ratio(models[:, view], references[:, view], seed=seed, n_pairs=20).ratio.value
            for view in range(models.shape[1])
        ]
    )


def below(found: np.ndarray) -> str:
    """How many of `(n, n_views)` lie below each bar, as they are and in the worst view."""
    told = []
    for bar in BARS:
        low, high = clopper_pearson(int((found.min(axis=1) < bar).sum()), len(found), alpha=0.05)
        told.append(
            f"{bar:g}: {int((found[:, 0] < bar).sum())}, {int((found.min(axis=1) < bar).sum())} ({low:.3f}–{high:.3f})"
        )
    return "; ".join(told)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(SETS), default="att")
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    parser.add_argument("--draws", type=int, default=3, help="of retrained models, for each subject")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    retrained: list[np.ndarray] = []
    nothing: list[tuple[float, str, np.ndarray]] = []
    of_methods: dict[str, dict[str, np.ndarray]] = {}
    for subject in margins_of(opened(options.set, options.folder), options.folder):
        n = min(N_MODELS, len(subject.out) // 2)
        for draw in range(options.draws):
            order = rng.permutation(len(subject.out))
            retrained.append(ratios(subject.out[order[:n]], subject.out[order[n : 2 * n]], draw))
        out, in_ = tail_mean(subject.out), tail_mean(subject.in_)
        learned = float((in_.mean() - out.mean()) / out.std(ddof=1))
        nothing.append((learned, subject.subject, ratios(subject.in_[:n], subject.out[:n], 0)))
        for kind, models in subject.others.items():
            if kind.startswith("method-"):
                found = ratios(models[:n], subject.out[:n], 0)
                of_methods.setdefault(kind.removeprefix("method-"), {})[subject.subject] = found
    print(f"{options.set}, up to {N_MODELS} models a side; below each bar: as it is, in the worst view")
    print(f"retrained, {len(retrained)}: {below(np.array(retrained))}")
    for low, high in ((3.0, np.inf), (2.0, 3.0), (1.0, 2.0), (-np.inf, 1.0)):
        inside = [found for learned, _, found in nothing if low <= learned < high]
        if inside:
            print(f"nothing done, d′ {low:g} to {high:g}, {len(inside)}: {below(np.array(inside))}")
    for method, by_subject in of_methods.items():
        each = [f"{name} {found[0]:.2f}/{found.min():.2f}" for name, found in by_subject.items()]
        worst = np.array([found.min() for found in by_subject.values()])
        print(f"{method}: median {np.median(worst):.2f} in the worst view; {', '.join(each)}")


if __name__ == "__main__":
    main()
