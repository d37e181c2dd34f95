"""Settings of fast unlearning methods for recipe `att_small`, found by a small search on people kept for tuning.

    python benchmarks/tune_methods.py [METHOD ...] [--trials N] [--quick] [--write] [--json FILE] [--data FOLDER]

For each tuning person a bank of models retrained without them is trained (kept beside the data, by recipe digest). A
trial draws settings, unlearns each person several times from one original model (Reuse-N-1), and is judged by

    F / F_null  −  10 · (what retain and test accuracy lack to 0.985 of retraining's)  −  5 · (what cost exceeds 16 %)

averaged over people, each person's F / F_null cut at 1. The first trial is a guess, a third of the others is drawn from
the whole space, the rest near the best so far. The best is measured again with 64 models a bank, from another original
and with other seeds; these are the figures printed beside those of the authors' own values (half as many runs) and,
with `--write`, kept in the package's `unlearning/methods/tuned.json`.

The people reported elsewhere never take part. Cost is CPU seconds of one thread against exact retraining measured in
turn with the trials, so that a busy machine hurts both alike.
"""

import os
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: one core is what is measured
# Run as a script, this file's own folder comes first on the path and its audit.py would hide the package `audit`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import argparse  # noqa: E402
import json  # noqa: E402
import math  # noqa: E402
import platform  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from audit import forgetting_quality, forgetting_ratio  # noqa: E402
from audit.exchangeability import exchangeability  # noqa: E402
from audit.margins import margins  # noqa: E402
from unlearning.devices import describe_device  # noqa: E402
from unlearning.errors import MethodError  # noqa: E402
from unlearning.faces import Faces, att, pack  # noqa: E402
from unlearning.methods import METHODS, Settings, unlearn  # noqa: E402
from unlearning.methods.settings import bound_to  # noqa: E402
from unlearning.recipes import RECIPES  # noqa: E402
from unlearning.training import Examples, logits, train  # noqa: E402

RECIPE = RECIPES["att_small"]
CPU = torch.device("cpu")
PEOPLE = ("s2", "s10", "s20", "s34")
REPORTED = frozenset({"s31", "s4", "s7", "s17", "s19", "s27", "s28", "s36"})
TUNED = Path(__file__).resolve().parent.parent / "unlearning" / "methods" / "tuned.json"

Draw = Callable[[np.random.Generator, float | None], float]


def between(low: float, high: float, *, log: bool = False, step: float = 0.0) -> Draw:
    """A number in [low, high]; near a given one if there is one."""
    ends = (math.log(low), math.log(high)) if log else (low, high)

    def draw(rng: np.random.Generator, near: float | None) -> float:
        if near is None:
            value = rng.uniform(*ends)
        else:
            value = np.clip((math.log(near) if log else near) + 0.15 * (ends[1] - ends[0]) * rng.normal(), *ends)
        value = math.exp(value) if log else float(value)
        return round(round(value / step) * step, 6) if step else float(f"{value:.3g}")

    return draw


REPAIR: dict[str, Draw] = {
    "epochs": between(1.5, 2.75, step=0.25),
    "learning_rate": between(0.02, 0.4, log=True),
    "confidence": between(0.0, 1.0, step=0.1),
}
"""What every repair on the retain set can vary; 20 epochs are a retraining."""


@dataclass(frozen=True)
class Space:
    """Settings of one method: those that stay, a first guess at those that are searched, and how these are drawn."""

    fixed: dict[str, object]
    guess: dict[str, float]
    draws: dict[str, Draw]


SPACES: dict[str, Space] = {
    "dilute": Space(
        {"schedule": "one-cycle", "settle": True},
        {"epochs": 2.25, "learning_rate": 0.075, "confidence": 0.8, "noise_share": 0.6},
        {**REPAIR, "noise_share": between(0.3, 0.8, step=0.05)},
    ),
    "seif": Space(
        {"schedule": "one-cycle", "settle": True, "class_weight_power": 0.0},
        {"epochs": 2.25, "learning_rate": 0.1, "confidence": 0.6, "noise": 0.06},
        {**REPAIR, "noise": between(0.02, 0.2, log=True)},
    ),
    "kookmin": Space(
        {"settle": True, "multipliers": (0.5, 1.0, 1.0, 0.5, 0.1)},
        {"epochs": 2.0, "learning_rate": 0.06, "confidence": 0.6, "redrawn_share": 0.4, "kept_gradient": 0.5},
        {**REPAIR, "redrawn_share": between(0.1, 0.7, step=0.05), "kept_gradient": between(0.1, 1.0, step=0.1)},
    ),
    "random_mask": Space(
        {"schedule": "one-cycle", "settle": True},
        {"epochs": 2.25, "learning_rate": 3e-3, "confidence": 0.7, "masked_share": 0.4},
        {
            **REPAIR,
            "learning_rate": between(1e-3, 3e-2, log=True),
            "masked_share": between(0.1, 0.7, step=0.05),
        },
    ),
    "finetune": Space(
        {"schedule": "one-cycle", "settle": True, "weight_decay": 5e-4},
        {"epochs": 2.25, "learning_rate": 0.25, "confidence": 0.5},
        REPAIR,
    ),
    "fanchuan": Space(
        {"settle": True, "retain_batch_size": 64},
        {
            "rounds": 2,
            "uniform_rate": 5e-3,
            "contrast_rate": 1e-3,
            "retain_rate": 0.1,
            "confidence": 0.5,
        },
        {
            "rounds": lambda rng, near: 2,
            "uniform_rate": between(1e-3, 0.1, log=True),
            "contrast_rate": between(3e-4, 3e-2, log=True),
            "retain_rate": between(0.01, 0.3, log=True),
            "confidence": REPAIR["confidence"],
        },
    ),
}


@dataclass(frozen=True)
class Person:
    """One person to forget, and what models that never met them say."""

    user_id: str
    forget: Examples
    retain: Examples
    margins: np.ndarray  # (n_models, n_images)
    retain_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class World:
    """All that a trial needs."""

    people: tuple[Person, ...]
    originals: tuple[torch.nn.Module, ...]
    test: Examples


@dataclass(frozen=True)
class Figures:
    """What came out, averaged over people."""

    forgetting_ratio: float
    lowest_forgetting_ratio: float
    retain_ratio: float
    test_ratio: float
    rejected: float
    cost_share: float

    @property
    def objective(self) -> float:
        """What the search climbs."""
        lacking = max(0.0, 0.985 - self.retain_ratio) + max(0.0, 0.985 - self.test_ratio)
        return self.forgetting_ratio - 10.0 * lacking - 5.0 * max(0.0, self.cost_share - 0.16)


def accuracy(model: torch.nn.Module, examples: Examples) -> float:
    return float((logits(model, examples.images).argmax(axis=1) == examples.labels.numpy()).mean())


def margins_of(model: torch.nn.Module, examples: Examples) -> np.ndarray:
    return margins(logits(model, examples.images), examples.labels.numpy())


def meet(user_id: str, faces: Faces, data: Examples, *, n_models: int, cache: Path) -> Person:
    """The person's bank, from the cache if it is there."""
    forget = data.subset(faces.where(split="train", subjects=[user_id]))
    retain = data.subset(faces.where(split="train", without=[user_id]))
    test = data.subset(faces.where(split="test"))
    file = cache / f"{RECIPE.digest[:16]}-{faces.manifest_digest[:16]}-{user_id}-{n_models}.npz"
    if not file.exists():
        print(f"{user_id}: retraining {n_models} models without them", flush=True)
        rows, accuracies = [], []
        for seed in range(n_models):
            model = train(RECIPE, retain, n_classes=2, seed=seed, device=CPU).model
            rows.append(margins_of(model, forget))
            accuracies.append((accuracy(model, retain), accuracy(model, test)))
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(file, margins=np.array(rows), accuracies=np.array(accuracies))
    kept = np.load(file, allow_pickle=False)
    retain_accuracy, test_accuracy = kept["accuracies"].mean(axis=0).tolist()
    return Person(user_id, forget, retain, kept["margins"], retain_accuracy, test_accuracy)


def measure(
    method: str, settings: Settings, world: World, *, original: int, seeds: range, ratio: Callable[..., float]
) -> Figures:
    """Unlearns every person once per seed, all from one original model."""
    bound = bound_to(settings, RECIPE)
    ratios, retain, test, rejected, seconds, retraining = [], [], [], [], [], []
    for person in world.people:
        started = time.process_time()
        train(RECIPE, person.retain, n_classes=2, seed=1, device=CPU)
        retraining.append(time.process_time() - started)
        rows, kept, tested = [], [], []
        for seed in seeds:
            started = time.process_time()
            model = unlearn(
                method,
                world.originals[original],
                person.forget,
                person.retain,
                recipe=RECIPE,
                seed=seed,
                device=CPU,
                settings=bound,
            ).model
            seconds.append(time.process_time() - started)
            rows.append(margins_of(model, person.forget))
            kept.append(accuracy(model, person.retain))
            tested.append(accuracy(model, world.test))
        ratios.append(ratio(np.array(rows), person.margins))
        retain.append(statistics.mean(kept) / person.retain_accuracy)
        test.append(statistics.mean(tested) / person.test_accuracy)
        rejected.extend(exchangeability(row, person.margins).p_value < 0.05 for row in rows)
    return Figures(
        forgetting_ratio=statistics.mean(min(value, 1.0) for value in ratios),
        lowest_forgetting_ratio=min(ratios),
        retain_ratio=statistics.mean(retain),
        test_ratio=statistics.mean(test),
        rejected=statistics.mean(map(float, rejected)),
        cost_share=statistics.median(seconds) / statistics.median(retraining),
    )


def rough_ratio(unlearned: np.ndarray, retrained: np.ndarray, n_draws: int = 12) -> float:
    """F / F_null of few unlearned models: all of them against as many retrained ones, over draws of the latter."""
    rng, n = np.random.default_rng(0), len(unlearned)
    forgotten, null = 0.0, 0.0
    for _ in range(n_draws):
        order = rng.permutation(len(retrained))
        one, other = retrained[order[:n]], retrained[order[n : 2 * n]]
        forgotten += np.nan_to_num(forgetting_quality(unlearned, one).value)
        null += np.nan_to_num(forgetting_quality(other, one).value)
    return float(forgotten / null) if null > 0 else 0.0


def full_ratio(unlearned: np.ndarray, retrained: np.ndarray) -> float:
    """The audit's own F / F_null."""
    return float(np.nan_to_num(forgetting_ratio(unlearned, retrained, seed=0, n_pairs=30).ratio.value))


def search(method: str, world: World, *, n_trials: int, n_runs: int) -> Settings:
    """The best settings found."""
    rng = np.random.default_rng(20240 + sum(map(ord, method)))
    space = SPACES[method]
    best: tuple[float, dict[str, float]] = (-math.inf, {})
    for trial in range(n_trials):
        near = best[1] if trial > n_trials // 3 else {}
        drawn = {name: draw(rng, near.get(name)) for name, draw in space.draws.items()} if trial else space.guess
        settings = METHODS[method].settings.from_dict({**space.fixed, **drawn})
        try:
            figures = measure(method, settings, world, original=0, seeds=range(100, 100 + n_runs), ratio=rough_ratio)
        except MethodError as error:
            print(f"  {method} trial {trial}: {error}")
            continue
        mark = ""
        if figures.objective > best[0]:
            best, mark = (figures.objective, drawn), "  best so far"
        print(f"  {method} trial {trial}: {figures.objective:+.2f} {row(figures)} {drawn}{mark}", flush=True)
    return METHODS[method].settings.from_dict({**space.fixed, **best[1]})


def row(figures: Figures) -> str:
    return (
        f"F/F_null {figures.forgetting_ratio:.2f} (lowest {figures.lowest_forgetting_ratio:.2f})  "
        f"RA {figures.retain_ratio:.3f}  TA {figures.test_ratio:.3f}  "
        f"rejected {figures.rejected:.2f}  cost {figures.cost_share:.0%}"
    )


def write(method: str, settings: Settings, record: dict[str, object]) -> None:
    """Puts what differs from the authors' values into the package's data, with the record."""
    tables = json.loads(TUNED.read_text(encoding="utf-8"))
    table = tables.get(RECIPE.name)
    if table is None or table["recipe_digest"] != RECIPE.digest:
        table = tables[RECIPE.name] = {"recipe_digest": RECIPE.digest, "methods": {}}
    authors = METHODS[method].settings().to_dict()
    differing = {name: value for name, value in settings.to_dict().items() if value != authors[name]}
    table["methods"][method] = {"settings": differing, "record": record}
    TUNED.write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")


def load(folder: Path) -> Faces:
    data = folder / "att"
    if not (data / "metadata.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        att.write_folder(att.find_or_download_wheel(folder), data)
    return pack(data, size=RECIPE.image_size, channels=RECIPE.channels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default all of {', '.join(SPACES)}")
    parser.add_argument("--trials", type=int, default=6, help="settings tried a method (default 6)")
    parser.add_argument("--quick", action="store_true", help="two trials, small banks: shows that it runs")
    parser.add_argument("--write", action="store_true", help="keep what was found in the package's tuned.json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="where faces and banks lie; default a temporary one"
    )
    options = parser.parse_args()
    unknown = set(options.methods) - SPACES.keys()
    if unknown:
        parser.error(f"no search space for {', '.join(sorted(unknown))}; expected some of {', '.join(SPACES)}")
    if options.quick and options.write:
        parser.error("--quick measures too little to be kept")
    if REPORTED & set(PEOPLE):
        parser.error("people reported elsewhere must not be tuned on")
    torch.set_num_threads(1)
    n_retrained, n_runs, n_unlearned = (12, 4, 12) if options.quick else (64, 32, 64)
    n_trials, people = (2, PEOPLE[:1]) if options.quick else (options.trials, PEOPLE)

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        faces = load(folder)
        data = Examples.from_arrays(faces.images, faces.labels)
        everyone = data.subset(faces.where(split="train"))
        machine = f"{describe_device(CPU)}, one thread, torch {torch.__version__}, {platform.system()}"
        print(f"machine: {machine}; load {os.getloadavg()[0]:.1f}\nrecipe: {RECIPE.name} {RECIPE.digest[:16]}")
        world = World(
            people=tuple(
                meet(user_id, faces, data, n_models=n_retrained, cache=folder / "banks") for user_id in people
            ),
            originals=tuple(train(RECIPE, everyone, n_classes=2, seed=900 + k, device=CPU).model for k in range(2)),
            test=data.subset(faces.where(split="test")),
        )
        results: dict[str, object] = {"machine": machine, "recipe": RECIPE.to_dict(), "people": people, "methods": {}}
        lines = []
        for method in options.methods or SPACES:
            found = search(method, world, n_trials=n_trials, n_runs=n_runs)
            seeds = range(1000, 1000 + n_unlearned)
            for label, settings in (("tuned", found), ("authors", METHODS[method].settings())):
                final = label == "tuned"
                figures = measure(
                    method,
                    settings,
                    world,
                    original=1,
                    seeds=seeds if final else seeds[: len(seeds) // 2],
                    ratio=full_ratio if final else rough_ratio,
                )
                lines.append(f"{method:12} {label:8} {row(figures)}")
                print(lines[-1], flush=True)
                record = {
                    "command": f"python benchmarks/tune_methods.py {method} --trials {n_trials} --write",
                    "machine": machine,
                    "people": list(people),
                    "n_retrained": n_retrained,
                    "n_unlearned": n_unlearned if final else n_unlearned // 2,
                    **{name: round(value, 4) for name, value in vars(figures).items()},
                }
                results["methods"][f"{method} {label}"] = {"settings": settings.to_dict(), **record}  # type: ignore[index]
                if final and options.write:
                    write(method, replace(settings, recipe=None), record)
        print("\n" + "\n".join(lines))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
