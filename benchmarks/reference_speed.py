"""Speed and accuracy of one reference model of the AT&T eyeglasses task, on one core.

    python benchmarks/reference_speed.py [--quick] [--thorough] [--json FILE] [--data FOLDER]

Prints, from one run on one machine:

* seconds for one reference model of recipe `att_small`, three ways with the same recipe, the same images and the
  same number of steps: *plain* (that of `references.py` on one thread, without its evaluations), *ours in float32*, and
  *ours* (the recipe as it is: bfloat16 where the processor multiplies it). The three take turns, so that a busy machine
  hurts all alike; ratios are per turn, with their spread;
* what two processes with one thread each keep of the rate of one alone;
* accuracy on the test people over ten seeds.

`--thorough` adds what the recipe was chosen by, cross-validation over the 32 training people (each left out once with
three others, two partitions; the test people take no part), and what there is to forget: margins of persons s31 and s4
under models trained with and without them.

Times are wall seconds; CPU seconds of the process stand beside them, which is what to read on a busy machine.
"""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded: one core is what is measured

import argparse
import json
import math
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from references import load, spread, train_plain
from scipy.stats import ks_2samp

from unlearning.devices import describe_device, resolve_dtype
from unlearning.faces import Faces
from unlearning.recipes import RECIPES
from unlearning.training import Examples, logits, train

RECIPE = RECIPES["att_small"]
CPU = torch.device("cpu")


def measure_seconds(data: Examples, n_turns: int) -> dict[str, dict[str, list[float]]]:
    """Wall and CPU seconds a model, by way, one entry a turn; a first turn that warms up is not counted."""
    ways: dict[str, Callable[[int], object]] = {
        "plain": lambda seed: train_plain(RECIPE, data, seed=seed),
        "ours float32": lambda seed: train(replace(RECIPE, dtype="float32"), data, n_classes=2, seed=seed, device=CPU),
        "ours": lambda seed: train(RECIPE, data, n_classes=2, seed=seed, device=CPU),
    }
    seconds: dict[str, dict[str, list[float]]] = {way: {"wall": [], "cpu": []} for way in ways}
    for turn in range(n_turns + 1):
        for way, run in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run(turn)
            if turn > 0:
                seconds[way]["wall"].append(time.perf_counter() - wall)
                seconds[way]["cpu"].append(time.process_time() - cpu)
    return seconds


def models_per_second(data: Examples, n_models: int, barrier: object, answers: object) -> None:
    """Body of a process: trains one model to warm up, waits for the others, then measures."""
    torch.set_num_threads(1)
    train(RECIPE, data, n_classes=2, seed=0, device=CPU)
    barrier.wait()  # type: ignore[attr-defined]
    started = time.perf_counter()
    for seed in range(n_models):
        train(RECIPE, data, n_classes=2, seed=seed, device=CPU)
    answers.put(n_models / (time.perf_counter() - started))  # type: ignore[attr-defined]


def measure_processes(data: Examples, n_models: int) -> dict[str, list[float]]:
    """Models a second of each process, when one runs and when two run."""
    context = multiprocessing.get_context("spawn")
    rates: dict[str, list[float]] = {}
    for n_processes in (1, 2):
        barrier, answers = context.Barrier(n_processes), context.Queue()
        processes = [
            context.Process(target=models_per_second, args=(data, n_models, barrier, answers))
            for _ in range(n_processes)
        ]
        for process in processes:
            process.start()
        rates[str(n_processes)] = [answers.get(timeout=600) for _ in processes]
        for process in processes:
            process.join()
    return rates


def measure_accuracy(faces: Faces, data: Examples, n_seeds: int) -> dict[str, list[float]]:
    """Share right among the images of train and of test people, one entry a seed."""
    rows = {split: faces.where(split=split) for split in ("train", "test")}
    shares: dict[str, list[float]] = {"train": [], "test": []}
    for seed in range(n_seeds):
        model = train(RECIPE, data.subset(rows["train"]), n_classes=2, seed=seed, device=CPU).model
        right = logits(model, data.images).argmax(axis=1) == faces.labels
        for split, row in rows.items():
            shares[split].append(float(right[row].mean()))
    return shares


def cross_validate(faces: Faces, data: Examples, n_folds: int = 8, n_partitions: int = 2) -> list[float]:
    """Accuracy on training people left out, one entry a fold; folds are mixed alike in glasses."""
    trained = faces.where(split="train")
    people = sorted(set(faces.subjects[trained]), key=lambda name: int(name[1:]))
    glasses = faces.classes.index("glasses")
    wearing = {person: int((faces.labels[faces.subjects == person] == glasses).sum()) for person in people}
    shares = []
    for partition in range(n_partitions):
        mixed = [people[i] for i in np.random.default_rng(partition).permutation(len(people))]
        ordered = sorted(mixed, key=wearing.__getitem__)
        for fold in range(n_folds):
            left_out = ordered[fold::n_folds]
            rest = faces.where(split="train", without=left_out)
            model = train(RECIPE, data.subset(rest), n_classes=2, seed=partition, device=CPU).model
            held = faces.where(subjects=left_out)
            shares.append(float((logits(model, data.images[held]).argmax(axis=1) == faces.labels[held]).mean()))
    return shares


def measure_forgetting(faces: Faces, data: Examples, person: str, n_models: int) -> dict[str, object]:
    """Margins of a person's images under `n_models` models trained with, and as many trained without, the person."""
    own = faces.where(subjects=[person])
    banks = []
    for without, first_seed in (((), 0), ([person], n_models)):
        rows = faces.where(split="train", without=without)
        bank = []
        for seed in range(first_seed, first_seed + n_models):
            z = logits(train(RECIPE, data.subset(rows), n_classes=2, seed=seed, device=CPU).model, data.images[own])
            sign = np.where(faces.labels[own] == 1, 1.0, -1.0)
            bank.append(sign * (z[:, 1] - z[:, 0]))
        banks.append(np.stack(bank))  # (n_models, 10)
    with_person, without_person = banks
    return {
        "n_models": n_models,
        "margin_with": float(with_person.mean()),
        "margin_without": float(without_person.mean()),
        "accuracy_with": float((with_person > 0).mean()),
        "accuracy_without": float((without_person > 0).mean()),
        "ks": [round(float(ks_2samp(a, b).statistic), 2) for a, b in zip(with_person.T, without_person.T, strict=True)],
    }


def mean_error(values: list[float]) -> str:
    """Mean and its standard error, in words."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns and three seeds instead of seven and ten")
    parser.add_argument("--thorough", action="store_true", help="also cross-validation and what there is to forget")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the faces are kept; default a temporary one")
    options = parser.parse_args()
    torch.set_num_threads(1)
    n_turns, n_seeds, n_models = (2, 3, 3) if options.quick else (7, 10, 10)

    with tempfile.TemporaryDirectory() as temporary:
        faces = load(options.data or Path(temporary), RECIPE)
        data = Examples.from_arrays(faces.images, faces.labels)
        trained = data.subset(faces.where(split="train"))
        machine = f"{describe_device(CPU)}, {os.cpu_count()} cores, torch {torch.__version__}, {platform.system()}"
        result: dict[str, object] = {"machine": machine, "recipe": RECIPE.to_dict(), "n_examples": len(trained)}
        print(f"machine: {machine}; load {os.getloadavg()[0]:.1f}")
        dtype = str(resolve_dtype(RECIPE.dtype, CPU)).removeprefix("torch.")
        print(f"recipe: {RECIPE.name}, {len(trained)} images, {RECIPE.epochs} epochs; its arithmetic here is {dtype}")

        seconds = result["seconds"] = measure_seconds(trained, n_turns)
        for way, clocks in seconds.items():
            print(f"{way:13} {spread(clocks['wall'])} s a model, {spread(clocks['cpu'])} s of CPU")
        for way in ("plain", "ours float32"):
            pairs = zip(seconds[way]["cpu"], seconds["ours"]["cpu"], strict=True)
            print(f"{way} takes {spread([theirs / ours for theirs, ours in pairs])} times the CPU seconds of ours")

        rates = result["models_per_second"] = measure_processes(trained, n_models)
        kept = [rate / rates["1"][0] for rate in rates["2"]]
        print(
            f"one process: {rates['1'][0]:.2f} models/s; two at once keep {kept[0]:.0%} and {kept[1]:.0%} of that each"
        )

        shares = result["accuracy"] = measure_accuracy(faces, data, n_seeds)
        for split, values in shares.items():
            print(f"{split} people: {mean_error(values)} right over {n_seeds} seeds (lowest {min(values):.3f})")
        if options.thorough:
            folds = result["cross_validation"] = cross_validate(faces, data)
            print(f"cross-validation over training people: {mean_error(folds)} right, {len(folds)} folds")
            forgetting = {person: measure_forgetting(faces, data, person, 2 * n_models) for person in ("s31", "s4")}
            result["forgetting"] = forgetting
            for person, figures in forgetting.items():
                print(f"{person}: {json.dumps(figures)}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
