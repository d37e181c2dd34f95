"""Spare models on AT&T faces: what an erasure costs with one, and what accuracy it leaves.

    python benchmarks/spares.py [--models N] [--epochs E ...] [--rates R ...] [--judged] [--folder FOLDER]

Somebody asks to be erased whose block has two people. For each of several such pairs, N times with other seeds: the
spare, trained without both; the spare caught up, on everybody but the one who asked; and a model retrained without the
one. Prints for each, as a share of the retrained models' mean: accuracy on the images that are retained, on those of
held-out people, and on the images of the *other* person of the block, whom the spare never saw; then the gate's false
positive rate at N − 1 references (models trained without the pair, as a block's are), and processor seconds as a share
of a training.

By default the pairs are of the people that methods are tuned on; `--judged` takes four other pairs, for the figures.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded
sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

import audit  # noqa: E402
from audit.statistics.gate import gate  # noqa: E402
from benchmarks.gates.models import Set, opened  # noqa: E402
from unlearning.faces.views import views  # noqa: E402
from unlearning.methods import Settings, find_method, unlearn  # noqa: E402
from unlearning.recipes import RECIPES  # noqa: E402
from unlearning.training import Examples, logits, train  # noqa: E402

TUNING = (("s2", "s10"), ("s20", "s34"), ("s10", "s20"), ("s34", "s2"))
JUDGED = (("s31", "s7"), ("s19", "s4"), ("s6", "s17"), ("s25", "s31"))


Model = tuple[str, tuple[float, ...], float, np.ndarray]
"""Name, shares of images answered rightly, processor seconds, margins `(n_views, n_images)` of who asked."""


def one_pair(set_: Set, pair: tuple[str, str], settings: dict[str, Settings], seeds: range) -> Iterator[Model]:
    """The models of one pair: for each seed a spare, a retrained model, and the spare caught up by each settings."""
    faces, recipe = set_.faces, RECIPES[set_.recipe]
    forget, other = (faces.where(split="train", subjects={person}) for person in pair)
    kept = np.setdiff1d(set_.rows, forget)
    judged_on = (kept, faces.where(split="test"), other)

    def of(rows: np.ndarray) -> Examples:
        return Examples.from_arrays(faces.images[rows], faces.labels[rows])

    def look(name: str, model: torch.nn.Module, seconds: float) -> Model:
        right = tuple(
            float(np.mean(logits(model, of(rows).images).argmax(axis=1) == faces.labels[rows])) for rows in judged_on
        )
        labels, shown = faces.labels[forget], views(np.asarray(faces.images[forget]))
        margins = [audit.margins(logits(model, Examples.from_arrays(v, labels).images), labels) for v in shown]
        return name, right, seconds, np.array(margins)

    def trained(rows: np.ndarray, seed: int) -> torch.nn.Module:
        return train(recipe, of(rows), n_classes=len(faces.classes), seed=seed, device="cpu").model

    for seed in seeds:
        spare = trained(np.setdiff1d(kept, other), 10 * seed)
        yield look("spare", spare, 0.0)
        begun = time.process_time()
        again = trained(kept, 10 * seed + 1)
        yield look("retrained", again, time.process_time() - begun)
        for name, chosen in settings.items():
            begun = time.process_time()
            caught = unlearn(
                "catch_up", spare, None, of(kept), recipe=recipe, seed=10 * seed + 2, device="cpu", settings=chosen
            ).model
            yield look(name, caught, time.process_time() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=9)
    parser.add_argument("--epochs", type=float, nargs="+", default=[1.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[0.01])
    parser.add_argument("--judged", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("build/gate"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    set_ = opened("att", options.folder)
    settings = {
        f"catch_up, {epochs:g} epochs at {rate:g}": find_method("catch_up").settings(epochs=epochs, learning_rate=rate)
        for epochs in options.epochs
        for rate in options.rates
    }

    found: dict[str, list[tuple[float, ...]]] = {}
    rejected: dict[str, list[bool]] = {}
    for number, pair in enumerate(JUDGED if options.judged else TUNING):
        models = list(one_pair(set_, pair, settings, range(1_000 * number, 1_000 * number + options.models)))
        bank = np.array([margins for name, _, _, margins in models if name == "spare"])
        seen: dict[str, int] = {}
        for name, right, seconds, margins in models:
            found.setdefault(name, []).append((*right, seconds))
            seen[name] = seen.get(name, -1) + 1  # the spare of this seed is no reference of what began with it
            rejected.setdefault(name, []).append(not gate(margins, np.delete(bank, seen[name], axis=0)).passed)
    full = np.mean(found["retrained"], axis=0)
    print(f"{'':34} {'retained':>9} {'held-out':>9} {'the other':>10} {'seconds':>8} {'rejected':>9}")
    for name in ("retrained", "spare", *settings):
        share = np.mean(found[name], axis=0) / full
        told = "  ".join(f"{one:8.3f}" for one in share)
        print(f"{name:34} {told} {np.mean(rejected[name]):8.3f} of {len(rejected[name])}")


if __name__ == "__main__":
    main()
