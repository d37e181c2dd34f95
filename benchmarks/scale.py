"""The reference banks' own work at 20,000 people and 200,000 images of 32×32: seconds and memory of every step.

    python benchmarks/scale.py [--quick] [--json FILE] [--data FOLDER]

Drawn faces are written once (`--data` keeps them). Then every step runs in a child process of its own, which tells
seconds and the most memory it held (the kernel's high-water mark, libraries and mapped files included, and that of the
processes it started, as if all had been at their highest at once); what it held before the step stands beside:

* *pack*: every image decoded into the memory-mapped array; *open*: the same folder again, nothing to decode;
* *blocks*: the block of each person; *key*: all that a block's bank is named by, its rosters included;
* *lookup*: from a person's id to the complete bank that judges, among the banks of all twenty blocks; *stale lookup*:
  the same after somebody else's erasure;
* *purge*: a person's columns and roster entries destroyed in all banks, and the block list.

The steps run at a quarter, at half and at all of the images, so that growth shows: bytes an image that a step's most
memory grows by from the smallest size to the largest. Bars are printed beside.
"""

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Run as a script, this file's own folder comes first on the path and its audit.py would hide the package `audit`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import psutil  # noqa: E402

STEPS = ("pack", "open", "blocks", "key", "lookup", "stale lookup", "purge")
BARS = {"blocks": 2.0, "key": 2.0, "lookup": 2.0, "stale lookup": 2.0, "purge": 2.0}
IMAGES_A_SECOND, MEGABYTES, BYTES_AN_IMAGE = 10_000, 500, 100
N_IMAGES = 10


def in_child(step: str, home: Path, n_models: int) -> dict[str, float]:
    """Run a step in a fresh process; gives `seconds`, `megabytes` and what else it tells."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(theirs, step, home, n_models))
    process.start()
    theirs.close()
    told: dict[str, float] = ours.recv()
    process.join()
    return told


def _child(pipe: Connection, step: str, home: Path, n_models: int) -> None:
    work, told = prepare(step, home, n_models)
    before, of_children, ended = most_megabytes(), {}, threading.Event()
    watcher = threading.Thread(target=watch_children, args=(of_children, ended))
    watcher.start()
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    ended.set()
    watcher.join()
    pipe.send({"seconds": seconds, "megabytes": most_megabytes() + sum(of_children.values()),
               "megabytes_before": before, **told})  # fmt: skip


def watch_children(most: dict[int, float], ended: threading.Event) -> None:
    """Until `ended`, what each process started by this one held at most."""
    while not ended.wait(0.05):
        for child in psutil.Process().children(recursive=True):
            with contextlib.suppress(OSError):
                held = most_megabytes(str(child.pid))
                if not math.isnan(held):  # of one that has just ended
                    most[child.pid] = held


def most_megabytes(process: str = "self") -> float:
    """Most memory a process held so far, libraries and mapped files included."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def prepare(step: str, home: Path, n_models: int) -> tuple[Callable[[], Any], dict[str, float]]:
    """What a step has open before it is timed, and the step."""
    from service.banks.blocks import blocks, forget_from_blocks
    from service.banks.build import plan_bank, plan_exact_bank
    from service.banks.store import BankStore
    from service.context import Context
    from service.settings import Settings
    from service.training.data import pack_images, recipe_of
    from service.training.spec import open_images
    from unlearning.faces import pack

    settings = Settings(home=home, recipe="synthetic_small", database_url="", device="cpu")
    context = Context.open(settings)
    recipe = recipe_of(context)
    opened = partial(
        pack, settings.data_folder, size=recipe.image_size, channels=recipe.channels, cache=settings.packed_folder
    )
    if step in ("pack", "open"):
        return opened, {}
    images = pack_images(settings, recipe)
    faces = open_images(images)
    if step == "blocks":
        return partial(blocks, settings, context.keyring, faces), {}
    assigned = blocks(settings, context.keyring, faces)
    people = faces.train_subjects()
    person = people[len(people) // 2]
    block = assigned[context.keyring.block_hash(person)]
    mates = {other for other in people if assigned[context.keyring.block_hash(other)] == block}
    if step == "key":
        return partial(plan_exact_bank, context, recipe, images, mates, set()), {}
    store = BankStore(settings.banks_folder)
    if step == "fill":
        return partial(fill, context, recipe, images, assigned, n_models), {}
    if step in ("lookup", "stale lookup"):
        if step == "stale lookup":
            other = next(p for p in people if p not in mates)
            absent, expected = {other}, 1 / (len(people) - len(mates))
        else:
            absent, expected = set(), 0.0

        def look() -> None:
            plan = plan_bank(
                context, recipe, images, forget={person}, absent=absent, n_models=n_models, staleness_max=0.05
            )
            assert plan.staleness.share == expected
            assert store.find(plan.key, n_models=n_models) is not None

        return look, {}
    tag = context.keyring.block_hash(person)

    def purge() -> None:
        assert store.drop_subject(tag) == N_IMAGES
        forget_from_blocks(settings, [tag])

    return purge, {}


def fill(context: Any, recipe: Any, images: Any, assigned: dict[str, str], n_models: int) -> None:
    """Complete banks of made-up margins for every block."""
    from service.banks.build import plan_exact_bank
    from service.banks.store import BankStore, ReferenceRow
    from service.training.spec import open_images

    people = open_images(images).train_subjects()
    members: dict[str, set[str]] = {}
    for person in people:
        members.setdefault(assigned[context.keyring.block_hash(person)], set()).add(person)
    store, rng = BankStore(context.settings.banks_folder), np.random.default_rng(0)
    for block in members.values():
        plan = plan_exact_bank(context, recipe, images, block, set())
        store.begin(
            plan.key, example_ids=plan.example_ids, subject_tags=plan.tags, n_wanted=n_models, now=context.now(),
            learned=plan.learned, tested=plan.tested,
        )  # fmt: skip
        for seed in range(n_models):
            margins = rng.normal(size=(plan.key.n_views, len(plan.example_ids))).astype(np.float32)
            store.add(plan.key, ReferenceRow(seed, plan.example_ids, margins, 0.9, 0.8, 1.0))


def measure(folder: Path, n_people: int, n_models: int) -> dict[str, dict[str, float]]:
    """Every step at one size."""
    from unlearning.faces.sources import synthetic

    home = folder / f"people-{n_people}"
    if not (home / "data" / "metadata.csv").exists():
        started = time.perf_counter()
        synthetic.write_folder(home / "data", n_subjects=n_people, images_per_subject=N_IMAGES, size=(32, 32), seed=3)
        print(f"{n_people * N_IMAGES:,} images written in {time.perf_counter() - started:.0f} s", flush=True)
    for leftover in ("packed", "banks"):
        shutil.rmtree(home / leftover, ignore_errors=True)
    found = {}
    for step in STEPS:
        if step == "lookup":
            in_child("fill", home, n_models)
        found[step] = in_child(step, home, n_models)
        told = found[step]
        rate = f", {n_people * N_IMAGES / told['seconds']:,.0f} images/s" if step == "pack" else ""
        print(
            f"  {n_people * N_IMAGES:>9,} images, {step:12} {told['seconds']:6.2f} s, {told['megabytes']:4.0f} MB at "
            f"most ({told['megabytes_before']:.0f} before){rate}",
            flush=True,
        )
    return found


def bytes_an_image(figures: dict[int, dict[str, dict[str, float]]]) -> dict[str, float]:
    """By step: what its most memory grows by from the smallest size to the largest, an image."""
    smallest, largest = min(figures), max(figures)
    return {
        step: (figures[largest][step]["megabytes"] - figures[smallest][step]["megabytes"])
        * (1 << 20) / ((largest - smallest) * N_IMAGES)
        for step in STEPS
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the people, one size")
    parser.add_argument("--people", type=int, nargs="+", default=[5_000, 10_000, 20_000], help="sizes")
    parser.add_argument("--models", type=int, default=64, help="models a bank")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="where the faces are kept; default a temporary one")
    options = parser.parse_args()
    sizes = (2_000,) if options.quick else tuple(options.people)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}"
    print(f"machine: {machine}; load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as temporary:
        figures = {n: measure(options.data or Path(temporary), n, options.models) for n in sizes}
    last = figures[sizes[-1]]
    for step, bar in BARS.items():
        print(f"{step}: {last[step]['seconds']:.2f} s; bar {bar:.0f} s")
    print(f"packing: {sizes[-1] * N_IMAGES / last['pack']['seconds']:,.0f} images/s; bar {IMAGES_A_SECOND:,}")
    largest = max(last, key=lambda step: last[step]["megabytes"])
    print(f"most memory: {last[largest]['megabytes']:.0f} MB ({largest}); bar {MEGABYTES} MB")
    if len(sizes) > 1:
        growth = bytes_an_image(figures)
        told = ", ".join(f"{step} {growth[step]:.0f}" for step in STEPS)
        print(f"growth of memory, bytes an image: {told}; bar {BYTES_AN_IMAGE}")
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "people": figures}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
