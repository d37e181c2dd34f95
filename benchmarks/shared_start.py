"""What keeps unlearned models from being like retrained ones: the memory of the person, or the start all runs share?

    python benchmarks/shared_start.py [--runs N] [--quick] [--json FILE] [--home FOLDER]

On the AT&T faces' tuning people (recipe `att_small`), N runs each of

* `dilute` for one pass from the original, which knows the person (Reuse-N-1);
* the same from one model trained without the person, and from four of them in turn: nothing of the person to forget;
* the same from the original with its first convolution spared most of the noise;
* `remix` with more and less mixing.

For each: F / F_null by person (as searches estimate it: 2 N retrained models), how far the mean margin over the
person's images lies from that of retrained models, in their standard deviations over models, and the ratio of
those; and accuracies as ratios to retraining. Models are trained without the person here and kept in memory.
Cost is measured apart, trainings and runs taking turns, so that whatever else the machine does slows both.
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
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402
from unittest.mock import patch  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

from audit.statistics.forgetting import mean_ratio, quick_ratio  # noqa: E402
from service.banks.store import Bank  # noqa: E402
from service.settings import Settings  # noqa: E402
from service.studies.datasets import WORLDS, open_world  # noqa: E402
from service.studies.experiments import draw_references  # noqa: E402
from service.studies.forget_setup import Stage, set_stage  # noqa: E402
from service.training.jobs import release_processes, score  # noqa: E402
from service.training.spec import open_images  # noqa: E402
from unlearning.devices import describe_device  # noqa: E402
from unlearning.methods import Unlearned, dilute, unlearn  # noqa: E402
from unlearning.methods.remix import RemixSettings  # noqa: E402
from unlearning.procedures.feeding import Feed  # noqa: E402
from unlearning.procedures.modules import layer_weights, layout  # noqa: E402
from unlearning.procedures.settings import Settings as MethodSettings  # noqa: E402
from unlearning.training import Examples, train  # noqa: E402

ORIGINAL_SEED, ABSENT_SEED, RUN_SEED = 1_000_003, 7_000_003, 2_000_003
N_ABSENT = 4

Starts = list[nn.Module]
"""The models that runs start from, in turn."""


@dataclass(frozen=True)
class Variant:
    """A method with settings, and for each stage the models to start from."""

    label: str
    method: str
    settings: MethodSettings
    starts: list[Starts]


def unlearned(stage: Stage, variant: Variant, start: Starts, run: int) -> Unlearned:
    """One run on a stage."""
    spec = stage.plan.spec
    return unlearn(
        variant.method, start[run % len(start)], None, examples(stage, spec.retain), recipe=spec.recipe,
        seed=RUN_SEED + run, device="cpu", settings=variant.settings,
    )  # fmt: skip


def figures(stage: Stage, bank: Bank, variant: Variant, start: Starts, runs: int) -> dict[str, Any]:
    """What so many runs on one stage get."""
    done = [unlearned(stage, variant, start, run) for run in range(runs)]
    margins, retain, test = (
        np.array(column) for column in zip(*(score(stage.plan.spec, d.model) for d in done), strict=True)
    )
    mine, theirs = margins[:, 0].astype(np.float64), bank.margins.astype(np.float64)
    spread = theirs.mean(axis=1).std(ddof=1)
    return {
        "forgetting_ratio": quick_ratio(mine, theirs, seed=0),
        "shift": float((mine.mean() - theirs.mean()) / spread),
        "spread_ratio": float(mine.mean(axis=1).std(ddof=1) / spread),
        "retain_ratio": mean_ratio(retain, bank.retain_accuracy),
        "test_ratio": mean_ratio(test, bank.test_accuracy),
    }


def examples(stage: Stage, rows: Any) -> Examples:
    """Rows of the packed data as examples."""
    faces = open_images(stage.plan.spec.images)
    return Examples.from_arrays(faces.images[rows], faces.labels[rows])


def trained(stage: Stage, rows: Any, seed: int) -> nn.Module:
    """A model of the recipe from scratch on some rows."""
    spec = stage.plan.spec
    n_classes = len(open_images(spec.images).classes)
    return train(spec.recipe, examples(stage, rows), n_classes=n_classes, seed=seed, device="cpu").model


def cost_shares(stage: Stage, variants: list[Variant], turns: int) -> dict[str, float]:
    """By label, median processor seconds of a run over those of a training, taken in turns."""
    spec = stage.plan.spec
    seconds: dict[str, list[float]] = {variant.label: [] for variant in variants}
    trainings = []
    for turn in range(turns):
        trainings.append(train(spec.recipe, examples(stage, spec.retain), n_classes=2, seed=turn, device="cpu").seconds)
        for variant in variants:
            seconds[variant.label].append(unlearned(stage, variant, variant.starts[0], turn).cost.seconds)
    return {label: float(np.median(taken) / np.median(trainings)) for label, taken in seconds.items()}


@torch.no_grad()
def spare_first(student: nn.Module, share: float, feed: Feed) -> None:
    """What `dilute` does to weights, but three tenths of noise in the first convolution."""
    first = f"{layout(student).first_convolution}.weight"
    for name, weight in layer_weights(student).items():
        a = 0.3 if name == first else share
        noise = feed.normal_like(weight, a * float(weight.detach().std(correction=0)))
        weight.mul_((1.0 - a**2) ** 0.5).add_(noise)


def sentence(label: str, rows: list[dict[str, Any]]) -> str:
    """A variant's figures, means over people and some by person, in a line."""
    means = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    each = " ".join(f"{row['forgetting_ratio']:.2f}" for row in rows)
    shifts = " ".join(f"{row['shift']:+.1f}" for row in rows)
    return (
        f"{label:42} F/F_null {means['forgetting_ratio']:.2f} ({each})  shift ({shifts})  spread × "
        f"{means['spread_ratio']:.2f}  retain {means['retain_ratio']:.3f}  test {means['test_ratio']:.3f}"
    )


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="one person, eight runs: shows that it runs")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--home", type=Path, help="folder to keep data and banks in; default: a temporary one")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        settings = Settings(home=arguments.home or Path(temporary), jobs=1, device="cpu")
        context = open_world("att", settings)
        people = WORLDS["att"].tuning[:1] if arguments.quick else WORLDS["att"].tuning
        runs = 8 if arguments.quick else arguments.runs
        stages = [set_stage(context, person) for person in people]
        banks = [draw_references(context, stage, 2 * runs, lambda done, wanted: None) for stage in stages]
        original = trained(stages[0], stages[0].origin.everybody, ORIGINAL_SEED)
        absent = [
            [trained(stage, stage.plan.spec.retain, ABSENT_SEED + k) for k in range(N_ABSENT)] for stage in stages
        ]
        once = dilute.DiluteSettings(epochs=1.0)
        rows: dict[str, list[dict[str, Any]]] = {}

        def measure(label: str, method: str, chosen: MethodSettings, starts: list[Starts]) -> None:
            variant = Variant(label, method, chosen, starts)
            rows[label] = [
                figures(stage, bank, variant, start, runs)
                for stage, bank, start in zip(stages, banks, starts, strict=True)
            ]
            print(sentence(label, rows[label]), flush=True)

        from_original = [[original] for _ in stages]
        measure("dilute, one pass, from the original", "dilute", once, from_original)
        measure("… from one model trained without them", "dilute", once, [models[:1] for models in absent])
        measure("… from four such models in turn", "dilute", once, absent)
        with patch.object(dilute, "add_noise", spare_first):
            measure("… from the original, first layer spared", "dilute", once, from_original)
        for share in (0.45, 0.55, 0.65):
            measure(f"remix, a = {share}", "remix", RemixSettings(mixed_share=share), from_original)
        timed = [
            Variant("dilute", "dilute", dilute.DiluteSettings(), from_original),
            Variant("dilute, one pass", "dilute", once, from_original),
            Variant("remix", "remix", RemixSettings(), from_original),
        ]
        costs = cost_shares(stages[0], timed, 3 if arguments.quick else 15)
        print("Cost: " + ", ".join(f"{label} {share:.1%}" for label, share in costs.items()))
        release_processes()
    print(f"{describe_device(torch.device('cpu'))}, {platform.machine()}, torch {torch.__version__}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"runs": runs, "rows": rows, "cost_shares": costs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
