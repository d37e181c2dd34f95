"""Several exact retrains before one bank of references: how often the gate rejects all of them.

    python benchmarks/attempts.py [--folder FOLDER] [--draws N]

A run tries exact retraining up to three times with fresh seeds, but all attempts are judged by the same references: a
bank that happens to lie high rejects more than one. Reads the margins that `benchmarks/gate.py --set att` keeps and
trains nothing: for each subject some banks of N references and three other retrained models, spread pooled.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402

import numpy as np  # noqa: E402

from audit.statistics.gate import gate  # noqa: E402
from audit.statistics.intervals import clopper_pearson  # noqa: E402
from audit.statistics.spread import pooled_spread  # noqa: E402
from benchmarks.gates.models import margins_of, opened  # noqa: E402

N_ATTEMPTS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    parser.add_argument("--draws", type=int, default=12, help="banks of each subject")
    options = parser.parse_args()
    subjects, rng = margins_of(opened("att", options.folder), options.folder), np.random.default_rng(0)
    for n_references in (8, 16, 32):
        rejected = []
        for subject in subjects:
            for _ in range(options.draws):
                order = rng.permutation(len(subject.out))
                references = subject.out[order[:n_references]]
                others = [
                    other.out[rng.permutation(len(other.out))[:n_references]]
                    for other in subjects
                    if other.subject != subject.subject
                ]
                pooled = pooled_spread(others)
                candidates = subject.out[order[n_references : n_references + N_ATTEMPTS]]
                rejected.append([not gate(each, references, pooled=pooled).passed for each in candidates])
        each, every = np.mean(rejected), np.all(rejected, axis=1)
        low, high = clopper_pearson(int(every.sum()), len(every), alpha=0.05)
        print(
            f"N = {n_references}: one attempt rejected {each:.3f}, all {N_ATTEMPTS} {every.mean():.4f} "
            f"({every.sum()} of {len(every)}; {low:.4f} to {high:.4f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
