"""How far oracle matching carries: with fewer oracles, and on images of the person that it was not matched on.

    python benchmarks/oracle_matching.py [--runs N] [--quick] [--json FILE] [--home FOLDER]

On the tuning people of the AT&T faces and of the drawn ones, N runs each of `remix`, of `oracle_matching` with 16, 32,
… oracles, and of retraining. For each, F / F_null (as searches estimate it: against 2 N retrained models)

* on the forget set as it is, which is what an audit sees;
* on its mirror images;
* on its images moved by two pixels up, down, left and right, the mean of the four;
* on its images turned by six degrees, the mean of both ways;

and how far the mean margin lies from the retrained models', in their standard deviations over models, averaged over
images; accuracies as ratios to retraining, seconds as a share of its. Mirroring and moving are what training varies
images by, so a model knows them nearly as well as the images themselves; turned they were learned by no model. All
runs start from one original. Everybody's models are trained here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: one core a process
# Run as a script, this file's own folder comes first on the path and its audit.py would hide the package `audit`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import tempfile  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from torchvision.transforms.functional import InterpolationMode, rotate  # noqa: E402

from audit.statistics.forgetting import mean_ratio, quick_ratio  # noqa: E402
from audit.statistics.margins import margins  # noqa: E402
from service.banks.oracles import FIRST_SEED  # noqa: E402
from service.settings import Settings  # noqa: E402
from service.studies.datasets import WORLDS, open_world  # noqa: E402
from service.studies.forget_setup import UNLEARNING_SEEDS, Stage, original_of, set_stage  # noqa: E402
from service.training.jobs import in_children, release_processes, score  # noqa: E402
from service.training.spec import Rows, open_images  # noqa: E402
from unlearning.devices import describe_device  # noqa: E402
from unlearning.methods import settings_for, unlearn  # noqa: E402
from unlearning.methods.oracle_matching import OracleMatchingSettings  # noqa: E402
from unlearning.procedures.oracles import with_oracles  # noqa: E402
from unlearning.training import Examples, logits, train  # noqa: E402

MOVES = ((2, 0), (-2, 0), (0, 2), (0, -2))
VIEWS = {"as they are": slice(0, 1), "mirrored": slice(1, 2), "moved": slice(2, 6), "turned": slice(6, 8)}


@dataclass(frozen=True)
class Seen:
    """A model: margins float32 `(n_views, n_images)` of the forget set, accuracies."""

    seed: int
    margins: NDArray[np.float32]
    retain_accuracy: float
    test_accuracy: float
    seconds: float


def views(images: torch.Tensor) -> list[torch.Tensor]:
    """Images `(n, c, h, w)` as they are, mirrored, moved each way, what leaves coming back, and turned both ways."""
    turned = (rotate(images, angle, interpolation=InterpolationMode.BILINEAR) for angle in (6.0, -6.0))
    return [images, images.flip(3), *(torch.roll(images, move, (2, 3)) for move in MOVES), *turned]


def see(stage: Stage, seed: int, model: torch.nn.Module, seconds: float) -> Seen:
    """A model's figures."""
    forget = examples(stage, stage.plan.spec.scored)
    found = [margins(logits(model, view.contiguous()), forget.labels.numpy()) for view in views(forget.images)]
    return Seen(seed, np.stack(found).astype(np.float32), *score(stage.plan.spec, model)[1:], seconds)


def examples(stage: Stage, rows: Rows) -> Examples:
    """Rows of the packed data."""
    faces = open_images(stage.plan.spec.images)
    return Examples.from_arrays(faces.images[rows], faces.labels[rows])


def retrained(stage: Stage, seed: int) -> Seen:
    """A model trained without the forget set."""
    spec = stage.plan.spec
    n_classes = len(open_images(spec.images).classes)
    trained = train(spec.recipe, examples(stage, spec.retain), n_classes=n_classes, seed=seed, device="cpu")
    return see(stage, seed, trained.model, trained.seconds)


def unlearned(stage: Stage, seed: int, method: str, oracles: NDArray[np.float32]) -> Seen:
    """A run from the one original; with as many oracles as there are."""
    spec = stage.plan.spec
    settings = settings_for(method, spec.recipe)
    if isinstance(settings, OracleMatchingSettings):
        settings = replace(settings, n_oracles=len(oracles))
    forget = with_oracles(examples(stage, spec.scored), oracles)
    done = unlearn(
        method, original_of(stage.origin, 0), forget, examples(stage, spec.retain),
        recipe=spec.recipe, seed=UNLEARNING_SEEDS + seed, device="cpu", settings=settings,
    )  # fmt: skip
    return see(stage, seed, done.model, done.cost.seconds)


def draw(task: Any, calls: Any, settings: Settings) -> list[Seen]:
    """Models in the order of their seeds."""
    return sorted(in_children(task, calls, settings), key=lambda seen: seen.seed)


def figures(runs: list[Seen], references: list[Seen]) -> dict[str, float]:
    """What runs get."""
    mine, theirs = (np.stack([seen.margins for seen in bank]).astype(np.float64) for bank in (runs, references))
    found: dict[str, float] = {}
    for name, part in VIEWS.items():
        m, t = mine[:, part], theirs[: 2 * len(runs), part]  # (n_models, n_views, n_images)
        ratios = [quick_ratio(m[:, view], t[:, view], seed=0) for view in range(m.shape[1])]
        found[name] = float(np.mean(ratios))
        found[f"{name}, off"] = float(np.abs((m.mean(axis=0) - t.mean(axis=0)) / t.std(axis=0, ddof=1)).mean())
    found["retain"] = mean_ratio([s.retain_accuracy for s in runs], [s.retain_accuracy for s in references])
    found["cost"] = float(np.median([s.seconds for s in runs]) / np.median([s.seconds for s in references]))
    found["test"] = mean_ratio([s.test_accuracy for s in runs], [s.test_accuracy for s in references])
    return found


def sentence(label: str, rows: list[dict[str, float]]) -> str:
    """Means over forget sets in a line."""
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    parts = [f"{name} {means[name]:.2f} (off {means[f'{name}, off']:.2f})" for name in VIEWS]
    shares = [f"{name} {means[name]:.3f}" for name in ("retain", "test", "cost")]
    return "  ".join([f"{label:32}", *parts, *shares])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=64)
    parser.add_argument("--quick", action="store_true", help="one person, sixteen runs: shows that it runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--home", type=Path, help="folder to keep data in; default: a temporary one")
    arguments = parser.parse_args()
    n = 16 if arguments.quick else arguments.runs
    sizes = [size for size in (16, 32, 64, 128) if size <= 2 * n]
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        settings = Settings(home=arguments.home or Path(temporary), device="cpu")
        for name in ["att"] if arguments.quick else list(WORLDS):
            context = open_world(name, settings)
            people = WORLDS[name].tuning[:1] if arguments.quick else WORLDS[name].tuning
            print(f"{WORLDS[name].title}, {n} runs on each of {len(people)} forget sets")
            found: dict[str, list[dict[str, float]]] = {}
            for stage in (set_stage(context, one) for one in people):
                references, again, oracles = (
                    draw(retrained, ((stage, first + seed) for seed in range(count)), context.settings)
                    for first, count in ((0, 2 * n), (2 * n, n), (FIRST_SEED, sizes[-1]))
                )
                said = np.stack([seen.margins[0] for seen in oracles])
                found.setdefault("retraining", []).append(figures(again, references))
                for label, method, n_oracles in [
                    ("remix", "remix", 1),
                    *((f"oracle matching, {size} oracles", "oracle_matching", size) for size in sizes),
                ]:
                    calls = ((stage, seed, method, said[:n_oracles]) for seed in range(n))
                    runs = draw(unlearned, calls, context.settings)
                    found.setdefault(label, []).append(figures(runs, references))
            for label, of_sets in found.items():
                print(sentence(label, of_sets), flush=True)
            rows[name] = found
        release_processes()
    print(f"{describe_device(torch.device('cpu'))}, {platform.machine()}, torch {torch.__version__}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": n, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
