"""The gate beside other tests of whether a model forgot a subject, on the same models.

    python benchmarks/peers.py [--set att|drawn] [--blocks N] [--subject ID ...] [--models N] [--large N]
                               [--folder FOLDER] [--jobs N] [--without-rmia] [--quick]

Takes the models of `benchmarks/gate.py` from its folder and trains what is missing. RMIA needs the margins of images
that no model learned from; for models that were kept without them the same seeds are trained again. For every subject N
models trained without its block and N trained with everybody are candidates in turn, each judged by references drawn
among the other models without the block:

* the gate, with the spread alone and pooled;
* offline LiRA, RMIA with 1 to 8 references, the relative MMD test;
* the competition's way, which judges N runs of a method by N retrained models (`--large`): the runs are retrained
  models, or models that forgot nothing.

A test that has a level of its own is taken at .05. The others reject above the score that .05 of the retrained models
of the other blocks exceed, so they need banks of other blocks as the pooled gate does. Prints for each test the
references it needs, processor seconds of a decision, the false positive rate over subjects with the exact binomial
interval and the largest of a subject, and power on models that forgot nothing by d′. Figures also go to
`SET-peers.json` in the folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: one core a process
# The project's root instead of this folder: `audit.py` here would hide the package `audit`.
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import json  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import defaultdict  # noqa: E402
from collections.abc import Callable, Collection, Mapping, Sequence  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from audit.evaluation import as_json  # noqa: E402
from audit.statistics.gate import ALPHA, gate  # noqa: E402
from audit.statistics.intervals import clopper_pearson  # noqa: E402
from audit.statistics.spread import PooledSpread, tail_mean  # noqa: E402
from benchmarks.gates.judging import CLASSES, pooled_of_others  # noqa: E402
from benchmarks.gates.models import (  # noqa: E402
    IN,
    OUT,
    SETS,
    Margins,
    Set,
    margins_of,
    opened,
    planned,
    population_of,
    train_all,
)
from benchmarks.gates.peers import (  # noqa: E402
    competition,
    lira_fisher,
    lira_level,
    lira_mean,
    relative_mmd,
    rmia,
    thresholds,
)

N_REFERENCES = 8
N_DRAWS = 2  # of references for each candidate
N_LARGE_DRAWS = 4  # of two banks for each subject, for the competition's way


@dataclass(frozen=True)
class Case:
    """One candidate, the references that are to judge it, and a model that was trained with everybody."""

    candidate: np.ndarray
    references: np.ndarray
    original: np.ndarray
    population: np.ndarray | None
    population_references: np.ndarray | None
    pooled: dict[int, PooledSpread | None]


@dataclass(frozen=True)
class Test:
    """A score of a case; rejects above `level`, or where that is None above the other blocks' retrained models."""

    name: str
    n_references: int
    score: Callable[[Case], float]
    level: float | None = None
    needs_population: bool = False


def _gate(n: int, *, pooled: bool) -> Callable[[Case], float]:
    def score(case: Case) -> float:
        found = gate(case.candidate, case.references[:n], pooled=case.pooled[n] if pooled else None)
        return -found.p_adjusted

    return score


def _upper(n: int) -> Callable[[Case], float]:
    """The gate's upper side with all of α, as the other tests have it."""
    return lambda case: -gate(case.candidate, case.references[:n], pooled=case.pooled[n]).p_value


def _lira(score: Callable[[np.ndarray, np.ndarray], float], n_views: int | None = None) -> Callable[[Case], float]:
    return lambda case: score(case.candidate[:n_views], case.references[:N_REFERENCES, :n_views])


def _rmia(n: int, n_views: int | None = None) -> Callable[[Case], float]:
    def score(case: Case) -> float:
        if case.population is None or case.population_references is None:
            raise ValueError("Expected margins of the population, which RMIA needs; train the models with them.")
        mine, theirs = case.candidate[:n_views], case.references[:n, :n_views]
        return float(rmia(mine, theirs, case.population[:n_views], case.population_references[:n, :n_views]).mean())

    return score


def _rmia_by_references(n: int) -> Callable[[Case], float]:
    """RMIA's score in standard deviations of what the references get, each judged by the others."""

    def score(case: Case) -> float:
        mine, theirs, whole = case.population, case.population_references, case.references[:n]
        if mine is None or theirs is None:
            raise ValueError("Expected margins of the population, which RMIA needs; train the models with them.")
        usual = []
        for i in range(n):
            others = np.delete(np.arange(n), i)
            usual.append(rmia(whole[i], whole[others], theirs[i], theirs[others]).mean())
        spread = max(float(np.std(usual, ddof=1)), 1e-9)
        return float((rmia(case.candidate, whole, mine, theirs[:n]).mean() - np.mean(usual)) / spread)

    return score


def _relative(n: int) -> Callable[[Case], float]:
    """Every margin is an observation; over several retrained models the mean of the statistics."""

    def score(case: Case) -> float:
        flat = case.candidate.ravel()
        return float(np.mean([relative_mmd(flat, one.ravel(), case.original.ravel()) for one in case.references[:n]]))

    return score


TESTS = (
    Test("gate, alone", 8, _gate(8, pooled=False), -ALPHA),
    Test("gate, pooled", 8, _gate(8, pooled=True), -ALPHA),
    Test("gate, pooled", 4, _gate(4, pooled=True), -ALPHA),
    Test("gate, pooled, upper side with all of α", 8, _upper(8), -ALPHA),
    Test("LiRA, each image's p-value, Bonferroni", 8, _lira(lira_level), 1 - ALPHA),
    Test("LiRA, mean score", 8, _lira(lira_mean)),
    Test("LiRA, Fisher's sum", 8, _lira(lira_fisher)),
    Test("LiRA, Fisher's sum, images as they are", 8, _lira(lira_fisher, 1)),
    *(Test("RMIA", n, _rmia(n), needs_population=True) for n in (1, 2, 4, 8)),
    Test("RMIA, among its references' scores", 8, _rmia_by_references(8), needs_population=True),
    Test("RMIA, images as they are", 8, _rmia(8, 1), needs_population=True),
    Test("relative MMD, its own level", 1, _relative(1), 1.6449),
    Test("relative MMD", 1, _relative(1)),
    Test("relative MMD", 8, _relative(8)),
)


@dataclass
class Scores:
    """Of one test: by subject the scores of retrained models and of originals, and processor seconds of them all."""

    retrained: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    originals: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: float = 0.0


def scored(
    subject: Margins,
    population: dict[tuple[str, int], np.ndarray],
    *,
    pooled: dict[int, PooledSpread | None],
    n_models: int,
    found: Mapping[Test, Scores],
    rng: np.random.Generator,
) -> None:
    """Scores of one subject's first OUT and IN models by all tests, added to `found`."""
    out, in_ = subject.out[:n_models], subject.in_[:n_models]
    outside, inside = population.get((OUT, subject.block)), population.get((IN, 0))
    for kind, models, seen in ((OUT, out, outside), (IN, in_, inside)):
        for i, model in enumerate(models):
            others = np.delete(np.arange(len(out)), i) if kind == OUT else np.arange(len(out))
            known = np.delete(np.arange(len(in_)), i) if kind == IN else np.arange(len(in_))
            for _ in range(N_DRAWS):
                chosen = rng.permutation(others)[:N_REFERENCES]
                mine = None if seen is None else seen[i]
                theirs = None if outside is None else outside[chosen]
                case = Case(model, out[chosen], in_[rng.choice(known)], mine, theirs, pooled)
                for test, scores in found.items():
                    started = time.process_time()
                    score = test.score(case)
                    scores.seconds += time.process_time() - started
                    (scores.retrained if kind == OUT else scores.originals)[subject.subject].append(score)


def of_competition(subject: Margins, n: int, found: Sequence[Scores], rng: np.random.Generator) -> None:
    """−F and mean ε of N runs against N retrained models: runs that are retrained models, and originals."""
    out, in_ = subject.out[:, 0], subject.in_[:, 0]
    for _ in range(N_LARGE_DRAWS):
        order = rng.permutation(len(out))
        references = out[order[:n]]
        for runs, kind in ((out[order[n : 2 * n]], "retrained"), (in_[rng.permutation(len(in_))[:n]], "originals")):
            started = time.process_time()
            values = competition(runs, references)
            spent = time.process_time() - started
            for scores, value in zip(found, values, strict=True):
                getattr(scores, kind)[subject.subject].append(value)
                scores.seconds += spent / len(found)


def figures(
    name: str, scores: Scores, subjects: Sequence[Margins], *, n_references: int, level: float | None, n_trials: int
) -> dict[str, Any]:
    """Rates of one test over subjects."""
    of_block: dict[int, list[float]] = defaultdict(list)
    for subject in subjects:
        of_block[subject.block] += scores.retrained[subject.subject]
    critical = thresholds(of_block, ALPHA) if level is None else dict.fromkeys(of_block, level)
    d = np.array([_d(subject) for subject in subjects])
    rates = np.array(
        [
            [
                np.mean(np.array(kind[one.subject]) > critical[one.block])
                for kind in (scores.retrained, scores.originals)
            ]
            for one in subjects
        ]
    )
    false_positives = float(rates[:, 0].mean())
    low, high = clopper_pearson(round(false_positives * n_trials), n_trials, alpha=0.05)
    classes = [(d >= bottom) & (d < top) for bottom, top in CLASSES]
    n_decisions = sum(len(values) for kind in (scores.retrained, scores.originals) for values in kind.values())
    return {
        "test": name,
        "n_references": n_references,
        "level": "own" if level is not None else "calibrated",
        "seconds": scores.seconds / n_decisions,
        "false_positive_rate": false_positives,
        "n_trials": n_trials,
        "interval": [float(low), float(high)],
        "worst_subject": float(rates[:, 0].max()),
        "power": [float(rates[inside, 1].mean()) if inside.any() else None for inside in classes],
        "n_subjects": [int(inside.sum()) for inside in classes],
    }


def _d(subject: Margins) -> float:
    out, in_ = tail_mean(subject.out), tail_mean(subject.in_)
    return float((in_.mean() - out.mean()) / out.std(ddof=1))


def show(found: dict[str, Any]) -> None:
    low, high = found["interval"]
    power = " / ".join("–" if value is None else f"{value:.2f}" for value in found["power"])
    print(
        f"  {found['test']:42} N = {found['n_references']:2}, {found['level']:10}: {found['seconds'] * 1e3:6.2f} ms, "
        f"false positive rate {found['false_positive_rate']:.3f} ({low:.3f} to {high:.3f}; most of a subject "
        f"{found['worst_subject']:.2f}), power {power}",
        flush=True,
    )


def compare(
    set_: Set, home: Path, options: argparse.Namespace, *, blocks: Collection[int], tests: Sequence[Test]
) -> list[dict[str, Any]]:
    """All tests on one set's blocks, printed as they come."""
    n_models, n_large = options.models, options.large
    everybody = margins_of(set_, home)
    subjects = [subject for subject in everybody if subject.block in blocks]
    needed = any(test.needs_population for test in tests)
    population = population_of(set_, home, n_models, blocks) if needed else {}
    pools = {n: pooled_of_others(subjects, everybody, n) for n in {test.n_references for test in tests} if n > 2}
    rng = np.random.default_rng(0)
    found, large = {test: Scores() for test in tests}, [Scores(), Scores()]
    for subject in subjects:
        pooled = {n: pool[subject.block] for n, pool in pools.items()}
        scored(subject, population, pooled=pooled, n_models=n_models, found=found, rng=rng)
        if 2 * n_large <= len(subject.out) and n_large <= len(subject.in_):
            of_competition(subject, n_large, large, rng)
    n_blocks = len({subject.block for subject in subjects})
    rows = [
        figures(
            test.name,
            scores,
            subjects,
            n_references=test.n_references,
            level=test.level,
            n_trials=n_models * n_blocks,
        )
        for test, scores in found.items()
    ]
    if large[0].retrained:
        rows += [
            figures(
                f"competition, {what}",
                scores,
                subjects,
                n_references=n_large,
                level=None,
                n_trials=N_LARGE_DRAWS * n_blocks,
            )
            for what, scores in zip(("F", "mean ε"), large, strict=True)
        ]
    counts = ", ".join(str(count) for count in rows[0]["n_subjects"])
    print(f"  subjects with d′ ≥ 3, 2–3, 1–2, below: {counts}")
    for row in rows:
        show(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", choices=list(SETS), help="default both")
    parser.add_argument("--blocks", type=int, metavar="N", help="only the first N blocks")
    parser.add_argument("--subject", action="append", metavar="ID", help="and these subjects' blocks")
    parser.add_argument("--models", type=int, default=20, help="of each kind that are candidates")
    parser.add_argument("--large", type=int, default=32, help="a side, for the competition's way")
    parser.add_argument("--folder", type=Path, default=Path("build/gate"), help="where margins are kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--without-rmia", action="store_true", help="train no model again for its population")
    parser.add_argument("--quick", action="store_true", help="one set, ten models: shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.set, options.models, options.large = ["att"], 10, 4
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary) if options.quick else options.folder
        for name in options.set or list(SETS):
            set_ = opened(name, home)
            blocks = set(range(len(set_.blocks) if options.blocks is None else options.blocks))
            blocks |= {set_.block_of(subject) for subject in options.subject or ()}
            print(f"{name}: {len(blocks)} of {len(set_.blocks)} blocks, recipe {set_.recipe}")
            models = list(planned(set_, n_in=options.models, n_out=options.models, blocks=blocks))
            spent = train_all(models, home, options.jobs, population=not options.without_rmia)
            print(f"  {spent:.0f} processor seconds of training and scoring", flush=True)
            tests = [test for test in TESTS if not (options.without_rmia and test.needs_population)]
            rows = compare(set_, home, options, blocks=blocks, tests=tests)
            (home / f"{name}-peers.json").write_text(json.dumps(as_json(rows), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
