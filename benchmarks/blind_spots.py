"""Every method, every question of the audit: one table.

    python benchmarks/blind_spots.py [--set att|drawn] [--subject ID ...] [--method METHOD ...] [--models N]
                                     [--originals N] [--runs N] [--most N] [--folder FOLDER] [--jobs N]
                                     [--figures-only] [--quick]

For each subject N models are trained without them, N originals with everybody, and from each original every method of
the registry forgets the subject once, with the settings that ship for the recipe. Of each model is kept what all
questions need: margins in ten views (the gate; F / F_null in every view), descriptors of penultimate features, margins
of retained subjects, margins after relearning, and accuracies. Retrained models take the place of candidates too (false
positives), and so do originals (power on having done nothing). `spare` is a model trained without the subject and
another one; the references lack the subject alone. Features and everybody else are asked with all references and with
eight, as many as an audit under `standard` has. "before and after" is the AUC of an attacker who keeps both
generations' answers, and guesses that whose lowest margins fell most was erased, among retained subjects.

On the drawn faces twelve subjects are looked at, four each of three blocks of ten. The references lack the block, as in
the service, so a retrained model there is what a spare is; `alone` is a model that lacks who asked and nobody else, as
exact retraining makes it, half as many as runs of a method. No method is run unless it is named.

Intervals are exact binomial ones for as many trials as there are models; these share references, so they are
approximate.

A run that was stopped goes on. Settings of the questions were chosen on other subjects (docs/blind-spots.md).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from joblib import Parallel, delayed  # noqa: E402

import audit  # noqa: E402
from audit.statistics.exposure import exposure  # noqa: E402
from audit.statistics.features import descriptors, features_gate  # noqa: E402
from audit.statistics.forgetting import forgetting_ratio  # noqa: E402
from audit.statistics.gate import ALPHA, gate  # noqa: E402
from audit.statistics.intervals import Interval, clopper_pearson  # noqa: E402
from audit.statistics.relearning import areas, p_value  # noqa: E402
from audit.statistics.spread import tail_mean  # noqa: E402
from benchmarks.gates.models import SETS, Set, opened  # noqa: E402
from benchmarks.relearning import curves  # noqa: E402
from service.training.relearned import MOST  # noqa: E402
from unlearning import relearning as steps  # noqa: E402
from unlearning.errors import UnlearningError  # noqa: E402
from unlearning.faces.views import views  # noqa: E402
from unlearning.features import features_and_logits  # noqa: E402
from unlearning.methods import METHODS, unlearn  # noqa: E402
from unlearning.procedures.oracles import with_oracles  # noqa: E402
from unlearning.recipes import RECIPES  # noqa: E402
from unlearning.training import Examples, logits, train  # noqa: E402

SUBJECTS = ("s31", "s19", "s26", "s7", "s4")
DRAWN_BLOCKS, OF_BLOCK = range(10, 13), 4
"""Blocks of drawn subjects on whom nothing was chosen, and how many of each are looked at."""
BLOCKS = {"s31": "s7", "s19": "s4", "s26": "s17", "s7": "s31", "s4": "s19"}
"""Who is missing from the spare as well."""
RETRAINED, NOTHING, SPARE, ALONE = "retrained", "nothing done", "spare", "alone"
FROM_NONE = (RETRAINED, SPARE, ALONE)
"""Kinds that began from no original."""
RUN = tuple(name for name, method in METHODS.items() if not method.exact)
N_REFERENCES, N_ORIGINALS, N_DRAWS, N_ORACLES, FIRST_ORACLE = 8, 8, 3, 16, 1_000


@dataclass(frozen=True)
class Kind:
    """Models of one kind about one subject, by number."""

    subject: str
    name: str
    number: int

    def file(self, folder: Path) -> Path:
        return folder / "blind-spots" / self.subject / self.name.replace(" ", "-") / f"{self.number:04d}.npz"


def look(set_: Set, model: torch.nn.Module, subject: str, seconds: float, file: Path) -> None:
    """Keep what the questions need of a model."""
    faces, rows = set_.faces, set_.faces.where(split="train", subjects=[subject])
    retained = np.setdiff1d(set_.rows, set_.rows_of(set_.block_of(subject)))
    labels, people = faces.labels, faces.subject_of
    seen = [
        features_and_logits(model, Examples.from_arrays(v, labels[rows]).images)
        for v in views(np.asarray(faces.images[rows]))
    ]
    kept, answers = features_and_logits(model, set_.examples(retained).images)
    margins, test = audit.margins(answers, labels[retained]), faces.where(split="test")
    found = {
        "views": np.array([audit.margins(answer, labels[rows]) for _, answer in seen]),
        "descriptors": descriptors(np.array([f for f, _ in seen]), labels[rows], people[rows], kept, labels[retained]),
        "others": np.array([tail_mean(margins[None, people[retained] == one]) for one in np.unique(people[retained])]),
        "curves": curves(model, set_.examples(rows), set_.examples(retained), set_.recipe),
        "accuracy": np.array(
            [
                np.mean(answers.argmax(axis=1) == labels[retained]),
                np.mean(logits(model, set_.examples(test).images).argmax(axis=1) == labels[test]),
            ]
        ),
        "seconds": np.array(seconds),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}")
    with beside.open("wb") as stream:
        np.savez(stream, **found)
    beside.replace(file)


def trained(set_: Set, rows: np.ndarray, seed: int) -> tuple[torch.nn.Module, float]:
    recipe, n_classes = RECIPES[set_.recipe], len(set_.faces.classes)
    made = train(recipe, set_.examples(rows), n_classes=n_classes, seed=seed, device="cpu")
    return made.model, made.seconds


def without(set_: Set, home: Path, subjects: Sequence[str], name: str, number: int) -> None:
    """A model without the block of some subjects and, if it is a spare, without somebody else; or the first alone."""
    files = {one: Kind(one, name, number).file(set_.folder(home)) for one in subjects}
    if all(file.exists() for file in files.values()):
        return
    torch.set_num_threads(1)
    block = set_.block_of(subjects[0])
    gone: Sequence[str] = set_.blocks[block]
    seed = 600_000_000 + 10_000 * block + number
    if name == SPARE:
        gone, seed = [*gone, BLOCKS[subjects[0]]], seed + 5_000
    elif name == ALONE:
        gone, seed = subjects[:1], seed + 100_000_000 + 1_000 * gone.index(subjects[0])
    rows = np.setdiff1d(set_.rows, set_.faces.where(split="train", subjects=gone))
    model, seconds = trained(set_, rows, seed)
    for subject, file in files.items():
        look(set_, model, subject, seconds, file)


def from_original(set_: Set, home: Path, subjects: Sequence[str], methods: Sequence[str], number: int) -> None:
    """What each method makes of one original for each subject."""
    folder = set_.folder(home)
    todo = [
        kind
        for kind in (Kind(subject, name, number) for subject in subjects for name in (NOTHING, *methods))
        if not kind.file(folder).exists() and not kind.file(folder).with_suffix(".failed").exists()
    ]
    if not todo:
        return
    torch.set_num_threads(1)
    original, _ = trained(set_, set_.rows, 650_000_000 + number)
    for kind in todo:
        rows = set_.faces.where(split="train", subjects=[kind.subject])
        forget, retain = set_.examples(rows), set_.examples(np.setdiff1d(set_.rows, rows))
        model, seconds = original, 0.0
        if kind.name != NOTHING:
            if METHODS[kind.name].needs_oracles:
                oracles = load(folder, kind.subject, RETRAINED, range(FIRST_ORACLE, FIRST_ORACLE + N_ORACLES))["views"]
                forget = with_oracles(forget, oracles[:, 0].astype(np.float32))
            try:
                done = unlearn(
                    kind.name, original, forget, retain, recipe=RECIPES[set_.recipe], seed=660_000_000 + number,
                    device="cpu",
                )  # fmt: skip
            except UnlearningError:
                kind.file(folder).parent.mkdir(parents=True, exist_ok=True)
                kind.file(folder).with_suffix(".failed").touch()
                continue
            model, seconds = done.model, done.cost.seconds
        try:
            look(set_, model, kind.subject, seconds, kind.file(folder))
        except audit.AuditError:
            kind.file(folder).parent.mkdir(parents=True, exist_ok=True)
            kind.file(folder).with_suffix(".failed").touch()


def is_lacking(folder: Path, call: tuple[Any, ...]) -> bool:
    """Whether a model that `without` or `from_original` would make is not there."""
    make, subjects, rest, number = call
    names = [rest] if make is without else [NOTHING, *rest]
    files = [Kind(subject, name, number).file(folder) for subject in subjects for name in names]
    return not all(file.exists() or file.with_suffix(".failed").exists() for file in files)


def load(folder: Path, subject: str, name: str, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """Stacked over models, those that are there; empty if none is."""
    found: dict[str, list[np.ndarray]] = {}
    for number in numbers:
        file = Kind(subject, name, number).file(folder)
        if file.exists():
            with np.load(file) as stored:
                for key in stored.files:
                    value = stored[key]
                    # As `service.training.relearned` has it of a model that blows up when it learns again.
                    found.setdefault(key, []).append(np.clip(value, -MOST, MOST) if key == "curves" else value)
                found.setdefault("number", []).append(np.array(number))
    return {key: np.array(values) for key, values in found.items()}


@dataclass(frozen=True)
class Row:
    """What the questions say of one kind's models on one subject; shares of the models, but for the ratios."""

    n: int
    gate: float
    ratios: tuple[Interval, ...]
    """F / F_null in each view."""
    features: float
    features_8: float
    relearning: float
    exposing: float
    exposing_8: float
    swap: float
    retain: float
    test: float
    cost: float

    @property
    def worst_view(self) -> float:
        return min(ratio.value for ratio in self.ratios)


def swap_auc(mine: dict[str, np.ndarray], i: int, known: dict[str, np.ndarray], kind: str) -> float:
    """How well who is forgotten is told from who stays by how far T fell from an original to what took its place.

    That is the original that a run began from, and any other for models that began from none.
    """
    numbers = known["number"]
    if kind in (*FROM_NONE, NOTHING):
        before = int((i + 1) % len(numbers))
    else:
        before = int(np.flatnonzero(numbers == mine["number"][i])[0])
    as_it_is = (bank["views"][j, :1][None] for bank, j in ((known, before), (mine, i)))
    theirs = float(np.subtract(*(tail_mean(views)[0] for views in as_it_is)))
    others = known["others"][before] - mine["others"][i]
    return float(np.mean((others < theirs) + 0.5 * (others == theirs)))


def judge(
    mine: dict[str, np.ndarray], out: dict[str, np.ndarray], known: dict[str, np.ndarray], kind: str, n_pairs: int = 20
) -> Row:
    """Every model in the candidate's place; a retrained one against the others."""
    rng, n_out, own = np.random.default_rng(0), len(out["views"]), steps.halves(out["curves"].shape[2])[0]
    after = areas(out["curves"], own)
    gated, told, told_8, back, exposing, exposing_8, fell = [], [], [], [], [], [], []
    for i, number in enumerate(mine["number"]):
        rest = np.delete(np.arange(n_out), i) if kind == RETRAINED else np.arange(n_out)
        others = np.arange(len(known["number"])) if kind in FROM_NONE else np.flatnonzero(known["number"] != number)
        for _ in range(N_DRAWS):
            order = rng.permutation(rest)
            gated.append(not gate(mine["views"][i], out["views"][order[:N_REFERENCES]]).passed)
            choosing = rng.permutation(others)[:N_ORIGINALS]
            originals = known["descriptors"][choosing]
            for found, some in ((told, order), (told_8, order[:N_REFERENCES])):
                found.append(not features_gate(mine["descriptors"][i], out["descriptors"][some], originals).passed)
            few = out["others"][order[:N_REFERENCES]]
            exposing_8.append(exposure(mine["others"][i], few).n_more_exposed > 0)
        back.append(p_value(areas(mine["curves"][i : i + 1], own)[0], after[rest]) < ALPHA)
        exposing.append(exposure(mine["others"][i], out["others"][rest]).n_more_exposed > 0)
        fell.append(swap_auc(mine, i, known, kind))
    half = n_out // 2
    pair = (mine["views"][:half], out["views"][half:]) if kind == RETRAINED else (mine["views"], out["views"])
    ratios = [
        forgetting_ratio(pair[0][:, view], pair[1][:, view], seed=view, n_pairs=n_pairs).ratio
        for view in range(pair[0].shape[1])
    ]
    accuracy = mine["accuracy"].mean(axis=0) / out["accuracy"].mean(axis=0)
    return Row(
        n=len(mine["number"]),
        gate=float(np.mean(gated)),
        ratios=tuple(ratios),
        features=float(np.mean(told)),
        features_8=float(np.mean(told_8)),
        relearning=float(np.mean(back)),
        exposing=float(np.mean(exposing)),
        exposing_8=float(np.mean(exposing_8)),
        swap=float(np.mean(fell)),
        retain=float(accuracy[0]),
        test=float(accuracy[1]),
        cost=float(np.median(mine["seconds"]) / np.median(out["seconds"])),
    )


def of_models(share: float, n_models: int) -> str:
    """A share with its interval."""
    low, high = clopper_pearson(round(share * n_models), n_models, alpha=0.05)
    return f"{share:.3f} ({float(low):.3f}–{float(high):.3f})"


def show(folder: Path, subjects: Sequence[str], kinds: Sequence[str], sizes: tuple[int, int, int]) -> None:
    """The table over subjects, and each subject's; those of whom models are lacking are left out."""
    n_models, n_originals, n_runs = sizes
    rows: dict[str, dict[str, Row]] = {}
    learned = {}
    for subject in subjects:
        out = load(folder, subject, RETRAINED, range(n_models))
        known = load(folder, subject, NOTHING, range(n_originals))
        if len(out.get("number", ())) <= N_REFERENCES or len(known.get("number", ())) <= N_ORIGINALS:
            continue
        t = tail_mean(out["views"])
        learned[subject] = float((tail_mean(known["views"]).mean() - t.mean()) / t.std(ddof=1))
        for kind in kinds:
            n = {RETRAINED: n_models, NOTHING: n_originals, ALONE: n_runs // 2}.get(kind, n_runs)
            mine = load(folder, subject, kind, range(n))
            if len(mine.get("number", ())) >= 4:
                rows.setdefault(kind, {})[subject] = judge(mine, out, known, kind)
    print(", ".join(f"{subject} d′ {d:.1f}" for subject, d in learned.items()))
    shares = ("gate", "features", "features_8", "relearning", "exposing", "exposing_8")
    others = ("swap", "worst_view", "retain", "test", "cost")
    print(f"\n{'':16}{'models':>7}" + "".join(f"{name:>20}" for name in shares + others))
    for kind, of in rows.items():
        n = sum(row.n for row in of.values())
        told = [of_models(float(np.mean([getattr(row, name) for row in of.values()])), n) for name in shares]
        means = [np.mean([getattr(row, name) for row in of.values()]) for name in others]
        means[1] = np.min([row.worst_view for row in of.values()])
        print(f"{kind:16}{n:7}" + "".join(f"{value:>20}" for value in (*told, *(f"{mean:.3f}" for mean in means))))
    print("\ngate / features / features with eight references / relearning by subject")
    for kind, of in rows.items():
        told = "; ".join(
            f"{s} {r.gate:.2f}/{r.features:.2f}/{r.features_8:.2f}/{r.relearning:.2f}" for s, r in of.items()
        )
        print(f"{kind:16}{told}")
    print("\nmeans over subjects by d′: gate / features / features with eight references / relearning / exposing")
    for low, high in ((3.0, np.inf), (2.0, 3.0), (1.0, 2.0), (-np.inf, 1.0)):
        inside = [subject for subject, d in learned.items() if low <= d < high]
        for kind, of in rows.items():
            if some := [of[subject] for subject in inside if subject in of]:
                told = "/".join(
                    f"{np.mean([getattr(row, name) for row in some]):.2f}"
                    for name in ("gate", "features", "features_8", "relearning", "exposing")
                )
                print(f"d′ {low:g} to {high:g}, {len(some)} subjects, {kind}: {told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=list(SETS), default="att")
    parser.add_argument("--subject", action="append", metavar="ID")
    parser.add_argument("--method", action="append", choices=RUN)
    parser.add_argument("--models", type=int, default=24, help="without each subject")
    parser.add_argument("--originals", type=int, default=16, help="with everybody")
    parser.add_argument("--runs", type=int, default=16, help="of each method, at most as many as originals; spares")
    parser.add_argument("--most", type=int, metavar="N", help="models trained before it ends; start it again")
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--figures-only", action="store_true", help="train nothing")
    parser.add_argument("--quick", action="store_true", help="one subject, two methods, few models: shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.subject, options.method = ["s31"], ["finetune", "remix"]
        options.models, options.originals, options.runs = 10, 10, 4
    set_, started = opened(options.set, options.folder), time.monotonic()
    is_drawn = options.set == "drawn"
    drawn = [one for block in DRAWN_BLOCKS for one in set_.blocks[block][:OF_BLOCK]] if is_drawn else []
    subjects = options.subject or drawn or list(SUBJECTS)
    methods = options.method or ([] if is_drawn else list(RUN))
    other = ALONE if is_drawn else SPARE
    names = [RETRAINED, NOTHING, other, *methods]
    if not options.figures_only:
        of_block: dict[int, list[str]] = {}
        for subject in subjects:
            of_block.setdefault(set_.block_of(subject), []).append(subject)
        blocks = list(of_block.values())
        oracles = range(FIRST_ORACLE, FIRST_ORACLE + N_ORACLES)
        if not any(METHODS[method].needs_oracles for method in methods):
            oracles = range(0)
        todo = [(without, some, RETRAINED, number) for number in range(options.models) for some in blocks]
        n_others = options.runs // 2 if is_drawn else options.runs
        todo += [(without, [subject], other, number) for subject in subjects for number in range(n_others)]
        todo += [
            (from_original, subjects, methods if number < options.runs else (), number)
            for number in range(options.originals)
        ]
        todo.sort(key=lambda call: call[-1])  # so that what there is of each kind can be judged whenever it ends
        left = options.most
        for calls in ([(without, some, RETRAINED, number) for number in oracles for some in blocks], todo):
            lacking = [call for call in calls if is_lacking(set_.folder(options.folder), call)][:left]
            left = None if left is None else left - len(lacking)
            Parallel(n_jobs=options.jobs, verbose=5)(
                delayed(make)(set_, options.folder, *rest) for make, *rest in lacking
            )
    folder = set_.folder(options.folder)
    show(folder, subjects, names, (options.models, options.originals, options.runs))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
