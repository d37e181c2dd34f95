"""Models of the gate's benchmark as features and margins, one file a model, written whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import audit
from benchmarks.gates.models import IN, Model, Set, make, opened
from unlearning.faces.views import views
from unlearning.features import features_and_logits
from unlearning.training import Examples

_TELL_SECONDS = 20


@dataclass(frozen=True)
class Seen:
    """What one model makes of the images that it is scored on, and of all training images as they are.

    Attributes:
        features: `(n_views, n_scored, n_features)`.
        kept_features: `(n_training_images, n_features)`.
        kept_margins: `(n_training_images,)`.
    """

    features: np.ndarray
    kept_features: np.ndarray
    kept_margins: np.ndarray


def file_of(model: Model, folder: Path) -> Path:
    """Where a model's features lie."""
    return (folder / "features" / model.file(folder).relative_to(folder)).with_suffix(".npz")


def see_all(models: Sequence[Model], home: Path) -> float:
    """Make those that are not there yet, one after another; processor seconds taken."""
    torch.set_num_threads(1)
    left = [model for model in models if not file_of(model, opened(model.set, home).folder(home)).exists()]
    print(f"{len(models) - len(left)} of {len(models)} models are there, {len(left)} left", flush=True)
    started, told = time.process_time(), time.monotonic()
    for done, model in enumerate(left, 1):
        _see(model, home)
        if time.monotonic() - told > _TELL_SECONDS or done == len(left):
            told = time.monotonic()
            print(f"  {done} of {len(left)}, {(time.process_time() - started) / done:.1f} s each", flush=True)
    return time.process_time() - started


def _see(model: Model, home: Path) -> None:
    """Those of kind IN are scored on all training images, others on those of their block."""
    set_ = opened(model.set, home)
    made, faces = make(set_, model, home), set_.faces
    scored = set_.rows if model.kind == IN else set_.rows_of(model.block)
    features = [
        features_and_logits(made, Examples.from_arrays(view, faces.labels[scored]).images)[0]
        for view in views(np.asarray(faces.images[scored]))
    ]
    kept_features, logits = features_and_logits(made, set_.examples(set_.rows).images)
    file = file_of(model, set_.folder(home))
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_suffix(f".{os.getpid()}")
    with beside.open("wb") as stream:
        np.savez(
            stream,
            features=np.array(features, dtype=np.float32),
            kept_features=kept_features,
            kept_margins=audit.margins(logits, faces.labels[set_.rows]).astype(np.float32),
        )
    beside.replace(file)


def seen(set_: Set, home: Path, kind: str, block: int) -> list[Seen]:
    """Of every model of a kind that is there, in the order of their numbers."""
    folder = set_.folder(home)
    found = []
    for file in sorted((folder / "features" / kind).glob(f"{block:03d}-*.npz")):
        with np.load(file) as stored:
            found.append(Seen(stored["features"], stored["kept_features"], stored["kept_margins"]))
    return found
