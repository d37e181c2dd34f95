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
from collections.abc import Sequence  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402

from audit.evaluation import as_json  # noqa: E402
from audit.report import drawings  # noqa: E402
from benchmarks.gates.choosing import choose  # noqa: E402
from benchmarks.gates.curves import Curve, curves  # noqa: E402
from benchmarks.gates.judging import learned_of, measure, summary  # noqa: E402
from benchmarks.gates.models import (  # noqa: E402
    FIRST_ORACLE,
    METHODS,
    N_ORACLES,
    NEEDS_ORACLES,
    RUNS,
    SETS,
    SHARES,
    Set,
    margins_of,
    opened,
    planned,
    train_all,
)
from benchmarks.pictures import standalone  # noqa: E402

LEARNED = 1.0  # d′ from which models between the two are trained and methods run


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
    learned = {one.block for one in subjects if learned_of(one) >= LEARNED}
    spent += train_all(list(planned(set_, n_between=options.between, blocks=learned)), home, options.jobs)
    also = {one.block for one in subjects if one.subject in set_.blank}
    kinds = [f"method-{method}" for method in options.method or METHODS]
    if options.models < FIRST_ORACLE + N_ORACLES:
        kinds = [kind for kind in kinds if kind != NEEDS_ORACLES]
    plan = planned(set_, n_runs=min(options.runs, options.originals), runs=kinds, blocks=learned | also)
    return spent + train_all(list(plan), home, options.jobs)


if __name__ == "__main__":
    main()
