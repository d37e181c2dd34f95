"""Every method, every question of the audit: one table.

    python benchmarks/blind_spots.py [--subject ID ...] [--method METHOD ...] [--models N] [--originals N] [--runs N]
                                     [--folder FOLDER] [--jobs N] [--figures-only] [--quick]

On AT&T faces. For each subject N models are trained without them, N originals with everybody, and from each original
every method of the registry forgets the subject once, with the settings that ship for the recipe. Of each model is kept
what all questions need: margins in ten views (the gate; F / F_null in every view), descriptors of penultimate features,
margins of retained subjects, margins after relearning, and accuracies. Retrained models take the place of candidates
too (false positives), and so do originals (power on having done nothing). `spare` is a model trained without the
subject and another one; the references lack the subject alone.

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

import numpy as np  # noqa: E402
import torch  # noqa: E402
from joblib import Parallel, delayed  # noqa: E402

import audit  # noqa: E402
from audit.statistics.exposure import exposure  # noqa: E402
from audit.statistics.features import descriptors, features_gate  # noqa: E402
from audit.statistics.forgetting import forgetting_ratio  # noqa: E402
from audit.statistics.gate import ALPHA, gate  # noqa: E402
from audit.statistics.intervals import clopper_pearson  # noqa: E402
from audit.statistics.relearning import areas, p_value  # noqa: E402
from audit.statistics.spread import tail_mean  # noqa: E402
from benchmarks.gates.models import Set, opened  # noqa: E402
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
BLOCKS = {"s31": "s7", "s19": "s4", "s26": "s17", "s7": "s31", "s4": "s19"}
"""Who is missing from the spare as well."""
RETRAINED, NOTHING, SPARE = "retrained", "nothing done", "spare"
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
    retained = np.setdiff1d(set_.rows, rows)
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
        "curves": curves(model, set_.examples(rows), set_.examples(retained)),
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


def without(set_: Set, home: Path, kind: Kind) -> None:
    """A model that never saw the subject, nor, if it is a spare, somebody else."""
    file = kind.file(set_.folder(home))
    if file.exists():
        return
    torch.set_num_threads(1)
    gone = [kind.subject, *([BLOCKS[kind.subject]] if kind.name == SPARE else [])]
    rows = np.setdiff1d(set_.rows, set_.faces.where(split="train", subjects=gone))
    seed = 600_000_000 + 10_000 * set_.block_of(kind.subject) + kind.number + 5_000 * (kind.name == SPARE)
    model, seconds = trained(set_, rows, seed)
    look(set_, model, kind.subject, seconds, file)


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
    worst_view: float
    features: float
    relearning: float
    exposing: float
    retain: float
    test: float
    cost: float


def judge(mine: dict[str, np.ndarray], out: dict[str, np.ndarray], known: dict[str, np.ndarray], kind: str) -> Row:
    """Every model in the candidate's place; a retrained one against the others."""
    rng, n_out, own = np.random.default_rng(0), len(out["views"]), steps.halves(out["curves"].shape[2])[0]
    after = areas(out["curves"], own)
    gated, told, back, exposing = [], [], [], []
    for i, number in enumerate(mine["number"]):
        rest = np.delete(np.arange(n_out), i) if kind == RETRAINED else np.arange(n_out)
        others = (
            np.flatnonzero(known["number"] != number)
            if kind not in (RETRAINED, SPARE)
            else np.arange(len(known["number"]))
        )
        for _ in range(N_DRAWS):
            order = rng.permutation(rest)
            gated.append(not gate(mine["views"][i], out["views"][order[:N_REFERENCES]]).passed)
            choosing = rng.permutation(others)[:N_ORIGINALS]
            judged = features_gate(mine["descriptors"][i], out["descriptors"][order], known["descriptors"][choosing])
            told.append(not judged.passed)
        back.append(p_value(areas(mine["curves"][i : i + 1], own)[0], after[rest]) < ALPHA)
        exposing.append(exposure(mine["others"][i], out["others"][rest]).n_more_exposed > 0)
    half = n_out // 2
    pair = (mine["views"][:half], out["views"][half:]) if kind == RETRAINED else (mine["views"], out["views"])
    ratios = [
        forgetting_ratio(pair[0][:, view], pair[1][:, view], seed=view, n_pairs=20).ratio.value
        for view in range(pair[0].shape[1])
    ]
    accuracy = mine["accuracy"].mean(axis=0) / out["accuracy"].mean(axis=0)
    return Row(
        n=len(mine["number"]),
        gate=float(np.mean(gated)),
        worst_view=float(np.min(ratios)),
        features=float(np.mean(told)),
        relearning=float(np.mean(back)),
        exposing=float(np.mean(exposing)),
        retain=float(accuracy[0]),
        test=float(accuracy[1]),
        cost=float(np.median(mine["seconds"]) / np.median(out["seconds"])),
    )


def show(folder: Path, subjects: Sequence[str], kinds: Sequence[str], sizes: tuple[int, int, int]) -> None:
    """The table over subjects, and each subject's."""
    n_models, n_originals, n_runs = sizes
    rows: dict[str, dict[str, Row]] = {}
    learned = {}
    for subject in subjects:
        out = load(folder, subject, RETRAINED, range(n_models))
        known = load(folder, subject, NOTHING, range(n_originals))
        t = tail_mean(out["views"])
        learned[subject] = float((tail_mean(known["views"]).mean() - t.mean()) / t.std(ddof=1))
        for kind in kinds:
            n = {RETRAINED: n_models, NOTHING: n_originals}.get(kind, n_runs)
            mine = load(folder, subject, kind, range(n))
            if len(mine.get("number", ())) >= 4:
                rows.setdefault(kind, {})[subject] = judge(mine, out, known, kind)
    print(", ".join(f"{subject} d′ {d:.1f}" for subject, d in learned.items()))
    names = ("gate", "worst_view", "features", "relearning", "exposing", "retain", "test", "cost")
    print(f"\n{'':16}{'models':>7}" + "".join(f"{name:>12}" for name in names))
    for kind, of in rows.items():
        means = [np.mean([getattr(row, name) for row in of.values()]) for name in names]
        means[1] = np.min([row.worst_view for row in of.values()])
        print(f"{kind:16}{sum(row.n for row in of.values()):7}" + "".join(f"{value:12.3f}" for value in means))
    retrained = rows[RETRAINED].values()
    n = sum(row.n for row in retrained)
    for name in ("gate", "features", "relearning", "exposing"):
        share = float(np.mean([getattr(row, name) for row in retrained]))
        low, high = clopper_pearson(round(share * n), n, alpha=0.05)
        print(f"false positives, {name}: {share:.3f} ({float(low):.3f}–{float(high):.3f}) of {n}")
    print("\ngate / features / relearning by subject")
    for kind, of in rows.items():
        told = "; ".join(f"{s} {r.gate:.2f}/{r.features:.2f}/{r.relearning:.2f}" for s, r in of.items())
        print(f"{kind:16}{told}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", action="append", choices=SUBJECTS)
    parser.add_argument("--method", action="append", choices=RUN)
    parser.add_argument("--models", type=int, default=24, help="without each subject")
    parser.add_argument("--originals", type=int, default=16, help="with everybody")
    parser.add_argument("--runs", type=int, default=16, help="of each method, at most as many as originals; spares")
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--figures-only", action="store_true", help="train nothing")
    parser.add_argument("--quick", action="store_true", help="one subject, two methods, few models: shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.subject, options.method = ["s31"], ["finetune", "remix"]
        options.models, options.originals, options.runs = 10, 10, 4
    set_, started = opened("att", options.folder), time.monotonic()
    subjects, methods = options.subject or list(SUBJECTS), options.method or list(RUN)
    if not options.figures_only:
        numbers = [*range(options.models), *range(FIRST_ORACLE, FIRST_ORACLE + N_ORACLES)]
        kinds = [Kind(subject, RETRAINED, number) for subject in subjects for number in numbers]
        kinds += [Kind(subject, SPARE, number) for subject in subjects for number in range(options.runs)]
        parallel = Parallel(n_jobs=options.jobs, verbose=5)
        parallel(delayed(without)(set_, options.folder, kind) for kind in kinds)
        parallel(
            delayed(from_original)(set_, options.folder, subjects, methods if number < options.runs else (), number)
            for number in range(options.originals)
        )
    folder = set_.folder(options.folder)
    show(folder, subjects, (RETRAINED, NOTHING, SPARE, *methods), (options.models, options.originals, options.runs))
    print(f"{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
