"""The gate on faces: how often it rejects a retrained model, and how often one that forgot nothing.

    python benchmarks/gate.py [--set att|drawn] [--subject ID ...] [--blocks N] [--models N] [--originals N]
                              [--between N] [--runs N] [--method METHOD ...] [--folder FOLDER] [--jobs N]
                              [--figures-only | --train-only] [--choose] [--quick]

For every block of subjects models are trained without it (OUT), and some with everybody (IN), and scored on the views
of `unlearning.faces.views`: the AT&T faces with recipe `att_small`, each of 32 subjects a block, and drawn faces with
`synthetic_small`, 200 training subjects in 20 blocks. Prints, for N = 4, 8, 16, 64 references as far as there are more
models than that:

* false positive rate: each OUT model is the candidate and is judged by N others drawn at random, several times; over
  all subjects, with the exact binomial interval for as many trials as there are OUT models, and the range over
  subjects;
* power: the share of IN models, which forgot nothing, that such banks reject, by d′ of the subject (T under IN above T
  under OUT, in standard deviations of OUT, from all models at hand), and for each AT&T subject with a d′ of 1 or more,
  beside the power that the gate itself states;
* the same with the spread pooled over the other blocks;
* models that learned from a quarter, a half or three quarters of the block's images (`--between`), for blocks with a
  subject of d′ 1 or more;
* runs of unlearning methods from originals, with the settings that ship for the recipe (`--runs`, at most as many as
  there are originals), for the same blocks and one of which nothing was learned: the share rejected for a T too high
  and too low, and where the median run lies. `oracle_matching` needs 66 models without a block.

Margins are kept in the folder: a run that was stopped goes on, and more models are added to those that are there. The
AT&T faces need 32 × N + N trainings of a processor second each, the drawn ones 20 × N + N of three seconds each.
`--figures-only` trains nothing, `--train-only` judges nothing. `--choose` compares statistics on the subjects that
methods are tuned on and on drawn ones. Figures also go to `SET-figures.json` in the folder, power to `SET-power.svg`,
and what is rejected by what was learned to `SET-shares.svg`.
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
import platform  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator, Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
from scipy import stats  # noqa: E402

from audit.evaluation import as_json  # noqa: E402
from audit.report import drawings  # noqa: E402
from audit.statistics.gate import ALPHA, UPPER_SHARE, Gate, gate  # noqa: E402
from audit.statistics.intervals import clopper_pearson  # noqa: E402
from audit.statistics.spread import PooledSpread, pooled_spread, tail_mean  # noqa: E402
from benchmarks.gates.curves import Curve, curves  # noqa: E402
from benchmarks.gates.models import (  # noqa: E402
    FIRST_ORACLE,
    METHODS,
    N_ORACLES,
    NEEDS_ORACLES,
    RUNS,
    SETS,
    SHARES,
    Margins,
    Set,
    margins_of,
    opened,
    planned,
    train_all,
)
from benchmarks.pictures import standalone  # noqa: E402

SIZES = (4, 8, 16, 64)
CLASSES = ((3.0, np.inf), (2.0, 3.0), (1.0, 2.0), (-np.inf, 1.0))
N_DRAWS = 3  # of references for each candidate
N_STATED = 5  # originals of each subject whose bank is asked for its power
N_KNOWN = 16  # originals that it then knows, as many as the service trains
LEARNED = 1.0  # d′ from which models between the two are trained and methods run


@dataclass(frozen=True)
class Rejected:
    """How often candidates of one kind are rejected, and where they lie."""

    any: float
    upper: float
    """By a T too high; `lower` by one too low, `rank` by the mean rank."""
    lower: float
    rank: float
    shift: float
    """Median over candidates of T above its mean over all OUT models, in their standard deviations."""
    n_candidates: int


@dataclass(frozen=True)
class Judged:
    """What the gate says of one subject's models at one number of references."""

    subject: str
    d: float
    retrained: Rejected
    originals: Rejected | None
    stated_power: float
    others: dict[str, Rejected]


def judge(subject: Margins, n_references: int, pooled: PooledSpread | None, rng: np.random.Generator) -> Judged:
    """Every model in the candidate's place, several times, against references drawn among the other OUT models."""
    out, of_out = subject.out, tail_mean(subject.out)

    def bank(but: int | None = None, n_first: int | None = None) -> np.ndarray:
        choice = np.arange(len(out) if n_first is None else min(n_first, len(out)))
        return out[rng.permutation(choice if but is None else np.delete(choice, but))[:n_references]]

    def rejected(models: np.ndarray, judged: Sequence[Gate]) -> Rejected:
        shifts = (tail_mean(models) - of_out.mean()) / of_out.std(ddof=1)
        return Rejected(
            any=_share(judged, lambda g: not g.passed),
            upper=_share(judged, lambda g: g.p_value < g.alpha_upper),
            lower=_share(judged, lambda g: g.p_over < g.alpha_lower),
            rank=_share(judged, lambda g: g.mean_rank_p < g.alpha_rank),
            shift=float(np.median(shifts)),
            n_candidates=len(models),
        )

    def all_of(models: np.ndarray, n_first: int | None = None) -> Rejected:
        return rejected(models, [gate(m, bank(n_first=n_first), pooled=pooled) for m in models for _ in range(N_DRAWS)])

    retrained = [gate(m, bank(but=i), pooled=pooled) for i, m in enumerate(out) for _ in range(N_DRAWS)]
    stated = []
    if len(subject.in_) > 2:
        for i, original in enumerate(subject.in_[:N_STATED]):
            known = np.delete(subject.in_, i, axis=0)[:N_KNOWN]
            stated.append(gate(original, bank(), originals=known, pooled=pooled).power)
    return Judged(
        subject.subject,
        _learned(subject),
        rejected(out, retrained),
        all_of(subject.in_) if len(subject.in_) else None,
        float(np.mean([power for power in stated if power is not None])) if stated else np.nan,
        # `oracle_matching` knows the margins of the last OUT models, which therefore judge no run.
        {
            kind: all_of(models, n_first=FIRST_ORACLE if kind in RUNS else None)
            for kind, models in subject.others.items()
            if kind not in RUNS or n_references <= min(FIRST_ORACLE, len(out))
        },
    )


def _share(judged: Sequence[Gate], event: Callable[[Gate], bool]) -> float:
    return float(np.mean([event(one) for one in judged]))


def _learned(subject: Margins) -> float:
    """d′ of the subject, from all models."""
    if len(subject.in_) < 2:
        return np.nan
    return _shift(tail_mean(subject.out), tail_mean(subject.in_))


def pooled_of_others(
    subjects: Sequence[Margins], everybody: Sequence[Margins], n_references: int
) -> dict[int, PooledSpread | None]:
    """For each subject's block the spread over all other blocks, from no more models than a bank of this size has."""
    found: dict[int, PooledSpread | None] = {}
    for block in sorted({subject.block for subject in subjects}):
        others = [one.out[:n_references] for one in everybody if one.block != block and len(one.out) > 2]
        found[block] = pooled_spread(others) if len(others) > 2 else None
    return found


def measure(subjects: Sequence[Margins], everybody: Sequence[Margins]) -> Iterator[tuple[int, str, list[Judged]]]:
    """For each number of references, alone and pooled, every subject's rates."""
    for n_references in SIZES:
        enough = [subject for subject in subjects if len(subject.out) > n_references]
        if not enough:
            continue
        pools = pooled_of_others(enough, everybody, n_references)
        for way in ("alone", "pooled"):
            rng = np.random.default_rng(n_references)
            rows = []
            for i, subject in enumerate(enough):
                pooled = pools[subject.block] if way == "pooled" else None
                if way == "pooled" and pooled is None:
                    continue
                rows.append(judge(subject, n_references, pooled, rng))
                if (i + 1) % 40 == 0:
                    print(f"  N = {n_references}, spread {way}: {i + 1} of {len(enough)} subjects judged", flush=True)
            if rows:
                yield n_references, way, rows


def summary(set_: Set, n_references: int, way: str, rows: Sequence[Judged]) -> dict[str, Any]:
    """Figures over subjects. Subjects of one block are judged by the same models, which counts for the interval."""
    rates = np.array([row.retrained.any for row in rows])
    of_block = {set_.block_of(row.subject): row.retrained.n_candidates for row in rows}
    n_trials = sum(of_block.values())
    low, high = clopper_pearson(round(float(rates.mean()) * n_trials), n_trials, alpha=0.05)
    classes = []
    for bottom, top in CLASSES:
        inside = [row for row in rows if bottom <= row.d < top]
        known = [row.originals.any for row in inside if row.originals]
        classes.append(
            {
                "d": [bottom, top],
                "n_subjects": len(inside),
                "power": float(np.mean(known)) if known else None,
                "stated": float(np.mean([row.stated_power for row in inside])) if inside else None,
                "others": {kind: _mean(inside, kind) for kind in (*SHARES, *RUNS) if _has(inside, kind)},
            }
        )
    return {
        "n_references": n_references,
        "spread": way,
        "n_subjects": len(rows),
        "false_positive_rate": float(rates.mean()),
        "n_retrained": n_trials,
        "interval": [float(low), float(high)],
        "over_subjects": [float(rates.min()), float(np.median(rates)), float(rates.max())],
        "sides": {
            side: float(np.mean([getattr(row.retrained, side) for row in rows])) for side in ("upper", "lower", "rank")
        },
        "classes": classes,
        "subjects": [asdict(row) for row in rows],
    }


def _has(rows: Sequence[Judged], kind: str) -> bool:
    return any(kind in row.others for row in rows)


def _mean(rows: Sequence[Judged], kind: str) -> dict[str, float]:
    """Means over subjects of the shares rejected, and of the subjects' median shifts."""
    found = [row.others[kind] for row in rows if kind in row.others]
    return {name: float(np.mean([getattr(one, name) for one in found])) for name in ("any", "upper", "lower", "shift")}


def show(figures: dict[str, Any]) -> None:
    low, high = figures["interval"]
    least, median, most = figures["over_subjects"]
    sides = ", ".join(f"{side} {share:.3f}" for side, share in figures["sides"].items())
    print(
        f"N = {figures['n_references']}, spread {figures['spread']}, {figures['n_subjects']} subjects: false positive "
        f"rate {figures['false_positive_rate']:.3f} ({low:.3f} to {high:.3f} for {figures['n_retrained']} retrained "
        f"models; subjects {least:.3f} to {most:.3f}, median {median:.3f}; {sides})"
    )
    for found in figures["classes"]:
        if found["n_subjects"] and found["power"] is not None:
            bottom, top = found["d"]
            shares = "".join(
                f", {kind} {found['others'][kind]['any']:.2f}" for kind in SHARES if kind in found["others"]
            )
            print(
                f"  d′ {bottom:g} to {top:g}: power {found['power']:.2f} (stated {found['stated']:.2f}) over "
                f"{found['n_subjects']} subjects{shares}"
            )
            for kind in RUNS:
                if kind in found["others"]:
                    one = found["others"][kind]
                    print(f"    {kind}: above {one['upper']:.2f}, below {one['lower']:.2f}, shift {one['shift']:+.1f}")


def named(figures: dict[str, Any]) -> None:
    """The subjects of whom something was learned, one by one, and those for whom methods were run all the same."""
    for row in sorted(figures["subjects"], key=lambda row: -row["d"]):
        runs = {kind: one for kind, one in row["others"].items() if kind in RUNS}
        if row["d"] >= LEARNED or runs:
            print(
                f"    {row['subject']}: d′ {row['d']:.1f}, power {row['originals']['any']:.2f} (stated "
                f"{row['stated_power']:.2f}), false positive rate {row['retrained']['any']:.3f}"
            )
        for kind, one in runs.items():
            print(
                f"      {kind}: rejected {one['any']:.2f}, above {one['upper']:.2f}, below {one['lower']:.2f}, "
                f"shift {one['shift']:+.1f}"
            )


def drawing(name: str, all_figures: Sequence[dict[str, Any]]) -> str:
    """Power by class of d′ and number of references; lines: the least and the most of a subject."""
    names, values, kinds = [], [], []
    for figures in all_figures:
        for found in figures["classes"]:
            bottom, top = found["d"]
            inside = [row for row in figures["subjects"] if bottom <= row["d"] < top]
            powers = [row["originals"]["any"] for row in inside if row["originals"]]
            if powers:
                span = (
                    f"d′ ≥ {bottom:g}"
                    if np.isinf(top)
                    else f"d′ < {top:g}"
                    if np.isinf(bottom)
                    else f"{bottom:g}–{top:g}"
                )
                names.append(f"N = {figures['n_references']}, {figures['spread']}, {span}")
                values.append((float(np.mean(powers)), min(powers), max(powers)))
                kinds.append("retrained" if figures["spread"] == "alone" else "unlearned")
    axis = "share of models that forgot nothing that is rejected"
    return drawings.ranked_intervals(
        names,
        values,
        kinds,
        band=None,
        axis=axis,
        name=f"gate-{name}",
        title="Power of the gate on models that forgot nothing",
    )


def by_share(figures: dict[str, Any]) -> str | None:
    """Share rejected by how much of the subject's images was learned from, one line for each class of d′."""
    lines = []
    for found, kind in zip(figures["classes"], ("unlearned", "retrained", "original"), strict=False):
        inside = [row for row in figures["subjects"] if found["d"][0] <= row["d"] < found["d"][1]]
        if inside and set(SHARES) <= set(found["others"]):
            points = [(0.0, float(np.mean([row["retrained"]["any"] for row in inside])))]
            points += [(share, found["others"][name]["any"]) for name, share in SHARES.items()]
            bottom, top = found["d"]
            name = f"d′ ≥ {bottom:g}" if np.isinf(top) else f"d′ {bottom:g} to {top:g}"
            lines.append(Curve(f"{name}: {len(inside)} subjects", kind, (*points, (1.0, found["power"]))))
    if not lines:
        return None
    return curves(
        lines,
        x_axis="share of the subject's images that was learned from",
        y_axis="share of models rejected",
        name="gate-shares",
        title=f"What the gate rejects, N = {figures['n_references']}",
    )


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
    learned = np.array([[_shift(f(one.out), f(one.in_)) for one in subjects] for f in STATISTICS.values()])
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


def _shift(out: np.ndarray, in_: np.ndarray) -> float:
    """How far IN lies above OUT in standard deviations of OUT."""
    return float((in_.mean() - out.mean()) / out.std(ddof=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", action="append", choices=list(SETS), help="default both")
    parser.add_argument("--subject", action="append", metavar="ID", help="only blocks of these subjects")
    parser.add_argument("--blocks", type=int, metavar="N", help="only the first N blocks")
    parser.add_argument("--models", type=int, default=20, help="without each block")
    parser.add_argument("--originals", type=int, default=20, help="with everybody")
    parser.add_argument("--between", type=int, default=0, help="with a part of a block's images, of each kind")
    parser.add_argument("--runs", type=int, default=0, help="of each method, for each block")
    parser.add_argument("--method", action="append", choices=METHODS, help="to run; default all of them")
    parser.add_argument("--folder", type=Path, default=Path("build/gate"), help="where margins are kept")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--figures-only", action="store_true", help="train nothing")
    parser.add_argument("--train-only", action="store_true", help="judge nothing")
    parser.add_argument("--choose", action="store_true", help="compare statistics on subjects for tuning")
    parser.add_argument("--quick", action="store_true", help="three subjects, nine models: shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.set, options.subject, options.models, options.originals = ["att"], ["s2", "s10", "s34"], 9, 4
        options.between, options.runs = 1, 0
    with tempfile.TemporaryDirectory() as temporary:
        run(options, Path(temporary) if options.quick else options.folder)


def run(options: argparse.Namespace, home: Path) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, {options.jobs} processes, load {os.getloadavg()[0]:.1f}")
    for name in options.set or list(SETS):
        set_ = opened(name, home)
        print(f"{name}: {len(set_.blocks)} blocks, recipe {set_.recipe}")
        blocks = None
        if options.subject:
            blocks = {i for i, block in enumerate(set_.blocks) if set(block) & set(options.subject)}
        if options.blocks is not None:
            blocks = set(range(options.blocks)) & (blocks or set(range(options.blocks)))
        if not options.figures_only:
            spent = trained(options, set_, home, blocks)
            print(f"  {spent:.0f} processor seconds of training and scoring")
        if options.train_only:
            continue
        everybody = margins_of(set_, home)
        subjects = [one for one in everybody if blocks is None or one.block in blocks]
        if options.choose:
            choose(set_, subjects)
            continue
        found = []
        started = time.process_time()
        for n_references, way, rows in measure(subjects, everybody):
            found.append(summary(set_, n_references, way, rows))
            show(found[-1])
            if name == "att" and n_references == 8:
                named(found[-1])
        print(f"  {time.process_time() - started:.0f} processor seconds of judging")
        if found:
            (home / f"{name}-figures.json").write_text(json.dumps(as_json(found), indent=1), encoding="utf-8")
            (home / f"{name}-power.svg").write_text(standalone(drawing(name, found)), encoding="utf-8")
        for figures in found:
            picture = by_share(figures) if (figures["n_references"], figures["spread"]) == (8, "pooled") else None
            if picture is not None:
                (home / f"{name}-shares.svg").write_text(standalone(picture), encoding="utf-8")


def trained(options: argparse.Namespace, set_: Set, home: Path, blocks: set[int] | None) -> float:
    """OUT and IN, and then for the blocks of which something was learned what lies between; processor seconds."""
    plan = planned(set_, n_in=options.originals, n_out=options.models, blocks=blocks)
    spent = train_all(list(plan), home, options.jobs)
    if not options.between and not options.runs:
        return spent
    subjects = [one for one in margins_of(set_, home) if blocks is None or one.block in blocks]
    learned = {one.block for one in subjects if _learned(one) >= LEARNED}
    spent += train_all(list(planned(set_, n_between=options.between, blocks=learned)), home, options.jobs)
    also = {one.block for one in subjects if one.subject in set_.blank}
    kinds = [f"method-{method}" for method in options.method or METHODS]
    if options.models < FIRST_ORACLE + N_ORACLES:
        kinds = [kind for kind in kinds if kind != NEEDS_ORACLES]
    plan = planned(set_, n_runs=min(options.runs, options.originals), runs=kinds, blocks=learned | also)
    return spent + train_all(list(plan), home, options.jobs)


if __name__ == "__main__":
    main()
