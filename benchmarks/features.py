"""Features and everybody else: what they tell of retrained models, of originals and of runs of methods.

    python benchmarks/features.py [--set att|drawn] [--subject ID ...] [--models N] [--originals N] [--runs N]
                                  [--method METHOD ...] [--folder FOLDER] [--figures-only | --train-only] [--quick]

For each subject models are trained without them (OUT), and some with everybody (IN), and their penultimate features
kept beside the margins of all training images, one file a model: a run that was stopped goes on. Prints two tables.

* **Features** (`audit.statistics.features`): each OUT model is the candidate and is judged by the others, half of which
  choose the direction with eight IN models, in several draws: the false positive rate, with its exact binomial
  interval. The IN models that chose nothing are candidates, too: power on having done nothing. Then the runs of
  methods, which begin from an IN model that is not among those that choose.
* **Everybody else** (`audit.statistics.exposure`): the same candidates, and in how many of them any retained subject is
  more exposed than in the OUT models.

Descriptors and direction were chosen on the subjects that methods are tuned on and on drawn faces. Runs of
`oracle_matching` need OUT models 50 to 65 of `benchmarks/gate.py --models 66` in the same folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402

import numpy as np  # noqa: E402

from audit.statistics.exposure import exposure  # noqa: E402
from audit.statistics.features import descriptors, features_gate  # noqa: E402
from audit.statistics.intervals import clopper_pearson  # noqa: E402
from audit.statistics.spread import tail_mean  # noqa: E402
from benchmarks.gates.features import Seen, see_all, seen  # noqa: E402
from benchmarks.gates.models import IN, METHODS, NEEDS_ORACLES, OUT, SETS, Set, opened, planned  # noqa: E402

SUBJECTS = {"att": ("s31", "s19", "s6", "s26", "s7", "s22", "s33", "s11", "s17", "s4"), "drawn": ()}
"""Nobody whom descriptors and direction were chosen on."""
N_ORIGINALS, N_DRAWS = 8, 5


@dataclass
class Found:
    """Of candidates of one kind and one subject, over draws of references."""

    rejected: list[bool] = field(default_factory=list)
    too_like: list[bool] = field(default_factory=list)
    shifts: list[float] = field(default_factory=list)
    exposing: list[bool] = field(default_factory=list)
    largest: list[float] = field(default_factory=list)
    n_candidates: int = 0


def described(set_: Set, models: Sequence[Seen], subject: str, kind: str) -> np.ndarray:
    """Descriptors of a subject's images under each model, `(n_models, n_descriptors, n_images)`."""
    rows, block = set_.faces.where(split="train", subjects=[subject]), set_.rows_of(set_.block_of(subject))
    kept, mine = ~np.isin(set_.rows, block), np.isin(set_.rows if kind == IN else block, rows)
    labels, people = set_.faces.labels, set_.faces.subject_of
    return np.array(
        [
            descriptors(
                model.features[:, mine], labels[rows], people[rows], model.kept_features[kept], labels[set_.rows][kept]
            )
            for model in models
        ]
    )


def others_of(set_: Set, models: Sequence[Seen], subject: str) -> np.ndarray:
    """T of each retained subject under each model, `(n_models, n_subjects)`."""
    people = set_.faces.subject_of[set_.rows]
    gone = np.unique(people[np.isin(set_.rows, set_.rows_of(set_.block_of(subject)))])
    return np.array(
        [[tail_mean(model.kept_margins[None, people == one]) for one in np.setdiff1d(people, gone)] for model in models]
    )


def judge(set_: Set, home: Path, subject: str, kinds: Sequence[str]) -> dict[str, Found]:
    """Every model of every kind in the candidate's place, several times."""
    block, rng = set_.block_of(subject), np.random.default_rng(0)
    stored = {kind: seen(set_, home, kind, 0 if kind == IN else block) for kind in (OUT, IN, *kinds)}
    features = {kind: described(set_, models, subject, kind) for kind, models in stored.items() if models}
    others = {kind: others_of(set_, models, subject) for kind, models in stored.items() if models}
    out, known = features[OUT], features[IN]
    found = {}
    for kind, candidates in features.items():
        one = Found(n_candidates=len(candidates))
        for i, candidate in enumerate(candidates):
            for _ in range(N_DRAWS):
                order = rng.permutation(np.delete(np.arange(len(out)), i) if kind == OUT else len(out))
                choosing = rng.permutation(len(known) if kind == OUT else np.delete(np.arange(len(known)), i))
                judged = features_gate(candidate, out[order], known[choosing[:N_ORIGINALS]])
                one.rejected.append(not judged.passed)
                one.too_like.append(judged.t > 0 and not judged.passed)
                one.shifts.append(judged.t)
            rest = np.delete(others[OUT], i, axis=0) if kind == OUT else others[OUT]
            told = exposure(others[kind][i], rest)
            one.exposing.append(told.n_more_exposed > 0)
            one.largest.append(told.largest_t)
        found[kind] = one
    return found


def rate(events: list[bool], n_candidates: int) -> str:
    """A share, with the exact binomial interval for as many trials as there are candidates."""
    share = float(np.mean(events))
    low, high = clopper_pearson(round(share * n_candidates), n_candidates, alpha=0.05)
    return f"{share:.3f} ({float(low):.3f}–{float(high):.3f})"


def show(found: dict[str, dict[str, Found]]) -> None:
    """By kind, over all subjects and for each."""
    names = {OUT: "retrained", IN: "nothing done"}
    for kind in dict.fromkeys(kind for by_kind in found.values() for kind in by_kind):
        mine = {subject: by_kind[kind] for subject, by_kind in found.items() if kind in by_kind}
        n = sum(one.n_candidates for one in mine.values())
        rejected, exposing = ([e for one in mine.values() for e in getattr(one, of)] for of in ("rejected", "exposing"))
        print(f"{names.get(kind, kind.removeprefix('method-'))}: {n} models of {len(mine)} subjects")
        print(f"  features: told apart {rate(rejected, n)}; everybody else: exposing {rate(exposing, n)}")
        for subject, one in mine.items():
            print(
                f"    {subject}: told apart {np.mean(one.rejected):.2f} (too like {np.mean(one.too_like):.2f}), median "
                f"t {np.median(one.shifts):+.1f}; exposing {np.mean(one.exposing):.2f}, largest t "
                f"{np.median(one.largest):.1f} in the median model"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(SETS), default="att")
    parser.add_argument("--subject", action="append", metavar="ID")
    parser.add_argument("--models", type=int, default=24, help="without each subject")
    parser.add_argument("--originals", type=int, default=24, help="with everybody")
    parser.add_argument("--runs", type=int, default=8, help="of each method, for each subject")
    parser.add_argument("--method", action="append", choices=METHODS, help="default all but oracle_matching")
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    parser.add_argument("--figures-only", action="store_true", help="train nothing")
    parser.add_argument("--train-only", action="store_true", help="judge nothing")
    parser.add_argument("--quick", action="store_true", help="one subject, few models: shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.set, options.subject, options.models, options.originals, options.runs = "att", ["s34"], 9, 9, 0
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) if options.quick else options.folder
        set_ = opened(options.set, home)
        subjects = options.subject or SUBJECTS[options.set] or [block[0] for block in set_.blocks[:5]]
        kinds = [
            f"method-{one}" for one in options.method or METHODS if options.method or f"method-{one}" != NEEDS_ORACLES
        ]
        if not options.figures_only:
            plan = planned(
                set_, n_in=options.originals, n_out=options.models, n_runs=options.runs, runs=kinds,
                blocks={set_.block_of(subject) for subject in subjects},
            )  # fmt: skip
            print(f"{see_all(list(plan), home):.0f} processor seconds")
        if not options.train_only:
            show({subject: judge(set_, home, subject, kinds) for subject in subjects})


if __name__ == "__main__":
    main()
