"""What two answers tell: predictions before and after a swap, to somebody who kept both.

    python benchmarks/before_after.py [--pairs N] [--subject ID ...] [--folder FOLDER] [--quick]

An attacker has images of many people and the answers of both generations to them. Whose answers changed most was
erased, they guess: the score of a person is the mean over their images of how far the margin of the true class fell.
For each subject, N pairs: an original trained with everybody, and what takes its place, by exact retraining with
another seed, and by methods that start from that original; as a comparison a model that learned from everybody again.
The figure is the AUC of the subject's score among those of all retained people, and among held-out people; ½ is
guessing. It is given for each value of the setting `EXPUNGE_ANSWERS`: six decimals, two, and the class alone (how often
the answer turned wrong). "N in one run" is exact retraining without N − 1 further people drawn at random; they are not
among the others, so the figure is how well one of them is told from who stayed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from audit.statistics.intervals import CONFIDENCE  # noqa: E402
from benchmarks.gates.models import Set, opened  # noqa: E402
from unlearning.methods import unlearn  # noqa: E402
from unlearning.recipes import RECIPES  # noqa: E402
from unlearning.training import Examples, logits, train  # noqa: E402

SUBJECTS = {"att": ("s31", "s19", "s6", "s26", "s7", "s34", "s4", "s17")}
METHODS = ("remix", "random_mask", "kookmin")
TOGETHER = (2, 4, 8)
"""People erased in one run."""
PLACES = {"full": 6, "rounded": 2}
ANSWERS = ("full", "rounded", "label")


def answers(model: torch.nn.Module, set_: Set) -> np.ndarray:
    """Probability of the true class for every image of the set, `(n_images,)`, float64."""
    faces = set_.faces
    rows = np.arange(len(faces.labels))
    found = logits(model, Examples.from_arrays(np.asarray(faces.images[rows]), faces.labels[rows]).images)
    powers = np.exp(found.astype(np.float64) - found.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True))[rows, faces.labels[rows]]


def scores(before: np.ndarray, after: np.ndarray, answer: str, n_classes: int) -> np.ndarray:
    """How far the answer for each image fell, `(n_images,)`, as seen through a setting."""
    if answer == "label":
        return (before > 1 / n_classes).astype(float) - (after > 1 / n_classes)
    unit = 10.0 ** -PLACES[answer]
    seen = [np.clip(np.round(p / unit) * unit, unit / 2, 1 - unit / 2) for p in (before, after)]
    return np.log(seen[0] / (1 - seen[0])) - np.log(seen[1] / (1 - seen[1]))


def auc(score: float, others: np.ndarray) -> float:
    """Share of others below a score, ties half."""
    return float(np.mean((others < score) + 0.5 * (others == score)))


def successors(
    set_: Set, original: torch.nn.Module, subject: str, seed: int
) -> Iterator[tuple[str, torch.nn.Module, set[str]]]:
    """By name, models that may take the original's place when a subject was erased, and who else was."""
    faces, recipe = set_.faces, RECIPES[set_.recipe]
    forget = faces.where(split="train", subjects={subject})
    kept = np.setdiff1d(set_.rows, forget)

    def of(rows: np.ndarray) -> Examples:
        return Examples.from_arrays(faces.images[rows], faces.labels[rows])

    n_classes = len(faces.classes)
    yield "nothing done, another seed", train(recipe, of(set_.rows), n_classes=n_classes, seed=seed).model, set()
    yield "retrain", train(recipe, of(kept), n_classes=n_classes, seed=seed + 1).model, set()
    for method in METHODS:
        made = unlearn(method, original, of(forget), of(kept), recipe=recipe, seed=seed + 2, device="cpu").model
        yield method, made, set()
    others = np.random.default_rng(seed).permutation(sorted(set(faces.train_subjects()) - {subject}))
    for n_together in TOGETHER:
        also = {str(one) for one in others[: n_together - 1]}
        rest = np.setdiff1d(kept, faces.where(split="train", subjects=also))
        made = train(recipe, of(rest), n_classes=n_classes, seed=seed + 2 + n_together).model
        yield f"retrain, {n_together} in one run", made, also


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--subject", action="append", metavar="ID")
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    parser.add_argument("--quick", action="store_true", help="one pair, one subject: shows that it runs")
    options = parser.parse_args()
    if options.quick:
        options.pairs, options.subject = 1, ["s31"]
    torch.set_num_threads(1)
    set_ = opened("att", options.folder)
    faces, recipe = set_.faces, RECIPES[set_.recipe]
    subjects = tuple(options.subject or SUBJECTS["att"])
    everything = Examples.from_arrays(faces.images[set_.rows], faces.labels[set_.rows])
    trained = set(faces.train_subjects())
    found: dict[tuple[str, str, str], list[float]] = {}
    for pair in range(options.pairs):
        original = train(recipe, everything, n_classes=len(faces.classes), seed=900_000_000 + pair, device="cpu").model
        before = answers(original, set_)
        for number, subject in enumerate(subjects):
            for name, model, also in successors(set_, original, subject, 910_000_000 + 1_000 * pair + 20 * number):
                after = answers(model, set_)
                for answer in ANSWERS:
                    by_image = scores(before, after, answer, len(faces.classes))
                    by_person = {
                        person: float(by_image[faces.subject_of == index].mean())
                        for index, person in enumerate(faces.people)
                    }
                    retained = np.array([by_person[one] for one in trained - {subject} - also])
                    unseen = np.array([score for one, score in by_person.items() if one not in trained])
                    for kind, others in (("retained", retained), ("held-out", unseen)):
                        found.setdefault((name, answer, kind), []).append(auc(by_person[subject], others))
        print(f"{pair + 1} of {options.pairs} originals", flush=True)
    print(f"\nAUC of the erased among others, mean over {len(subjects)} subjects and {options.pairs} originals")
    print(
        f"{'':28}" + "".join(f"{answer + ', ' + kind:>20}" for kind in ("retained", "held-out") for answer in ANSWERS)
    )
    rng = np.random.default_rng(0)
    for name in dict.fromkeys(key[0] for key in found):
        told = []
        for kind in ("retained", "held-out"):
            for answer in ANSWERS:
                table = np.array(found[name, answer, kind]).reshape(options.pairs, len(subjects))
                draws = [
                    table[rng.integers(0, len(table), len(table))].mean() for _ in range(1_000)
                ]  # over originals, the subjects fixed
                low, high = np.quantile(draws, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
                told.append(f"{table.mean():.2f} ({low:.2f}–{high:.2f})")
        print(f"{name:28}" + "".join(f"{one:>20}" for one in told))


if __name__ == "__main__":
    main()
