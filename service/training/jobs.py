"""One trial: a model trained or unlearned in a child process and scored. Banks are many trials, a candidate is one.

Trials run through joblib in processes of one thread each, or on a Ray cluster (`service.training.ray_cluster`); the
caller sees their results as they finish. Where predictions are served they run as much as callers hardly feel
(`service.training.governor`). A trial carries row numbers of the packed arrays, never user ids, and ends with
the process that asked for it.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import joblib
import numpy as np
import torch
from joblib.externals.loky import ProcessPoolExecutor, get_reusable_executor
from numpy.typing import NDArray

import audit
from audit.errors import NotANumberError
from service.settings import Settings
from service.training.child import in_child, processes_below, wait_for_end
from service.training.governor import governed, yields
from service.training.looks import Looks, look
from service.training.parallel import jobs_of
from service.training.ray_cluster import disconnect, on_cluster, result_of
from service.training.relearned import relearned
from service.training.spec import Rows, TrialSpec, intact, open_images
from unlearning.devices import bound_memory, resolve_device
from unlearning.errors import MethodError
from unlearning.faces import Faces
from unlearning.faces.views import VIEWS
from unlearning.methods import find_method, unlearn
from unlearning.models import load_weights, save_weights
from unlearning.procedures.oracles import with_oracles
from unlearning.training import Examples, fresh_model, logits, train

T = TypeVar("T")
CHUNK = 4096  # images whose views are in memory at a time


@dataclass(frozen=True)
class Outcome:
    """What a trial measured.

    Attributes:
        views: margins of the scored rows, float32 `(n_views, n_examples)`; the first view is the image as it is, and
            the only one unless the spec asks for all. Margins after relearning come last.
        retain_accuracy, test_accuracy: in [0, 1].
        seconds: of training or unlearning alone.
        n_forward, n_backward: examples passed.
        weights_digest: SHA-256 of the weights file, if it was kept.
        looks: features and others' margins, if the spec asks for them.
    """

    seed: int
    views: NDArray[np.float32]
    retain_accuracy: float
    test_accuracy: float
    seconds: float
    n_forward: int
    n_backward: int
    weights_digest: str | None = None
    looks: Looks | None = None

    @property
    def margins(self) -> NDArray[np.float32]:
        """Margins of the images as they are, `(n_examples,)`."""
        return self.views[0]


def run_trials(
    spec: TrialSpec, seeds: Iterable[int], settings: Settings, *, keep_weights: Path | None = None
) -> Iterator[Outcome]:
    """Outcomes of one trial a seed, as they finish; see `in_children`.

    Args:
        keep_weights: file for the weights; for a single seed only.
    """
    return in_children(run_trial, ((spec, seed, keep_weights) for seed in seeds), settings)


def run_apart(spec: TrialSpec, seed: int, settings: Settings, keep_weights: Path) -> Outcome:
    """One trial in a process started for it alone, so that nothing earlier trials left there can matter."""
    (outcome,) = _one_after_another(run_trial, [(spec, seed, keep_weights)], settings)
    return outcome


def in_children(task: Callable[..., T], calls: Iterable[tuple[Any, ...]], settings: Settings) -> Iterator[T]:
    """What `task(*call)` gives for each call, as they finish, from processes such as the module's text describes.

    With one job they run in this process, one after another, unless they have to stand back behind predictions; with a
    cluster, there.
    """
    if settings.cluster:
        yield from on_cluster(task, calls, settings)
        return
    n = jobs_of(settings).n
    if n > 1:
        parallel = joblib.Parallel(
            n_jobs=n, backend="loky", batch_size=1, return_as="generator_unordered", max_nbytes=None
        )  # no file outside of the home
        with governed(settings):
            made = parallel(joblib.delayed(in_child)(*_packed(task, call, settings, n)) for call in calls)
            yield from map(pickle.loads, made)
    elif yields(settings):
        yield from _one_after_another(task, calls, settings)
    else:
        for call in calls:
            yield _bounded(task, call, (settings.device, settings.training_gpu_share))


def _one_after_another(task: Callable[..., T], calls: Iterable[tuple[Any, ...]], settings: Settings) -> Iterator[T]:
    """What `task(*call)` gives for each call, from a process started for them alone."""
    with ProcessPoolExecutor(max_workers=1) as executor, governed(settings):
        for call in calls:
            yield pickle.loads(executor.submit(in_child, *_packed(task, call, settings, 1)).result())  # noqa: S301


def _packed(task: Callable[..., T], call: tuple[Any, ...], settings: Settings, n: int) -> tuple[bytes, int, Settings]:
    """Arguments of `in_child`, each process with its part of a GPU's memory."""
    bound = settings.device, settings.training_gpu_share / n
    return cloudpickle.dumps((_bounded, (task, call, bound))), os.getpid(), settings


def score(spec: TrialSpec, model: torch.nn.Module) -> tuple[NDArray[np.float32], float, float]:
    """`Outcome.views`, accuracy on `retain_scored` and on `test`."""
    faces = open_images(spec.images)
    views = margins_in_views(model, faces.images, faces.labels, spec.scored, all_views=spec.with_views)
    if spec.with_relearning:
        views = np.concatenate([views, relearned(spec, faces, model)])
    return views, accuracy(model, faces, spec.retain_scored), accuracy(model, faces, spec.test)


def margins_in_views(
    model: torch.nn.Module, images: NDArray[np.uint8], labels: NDArray[np.int64], rows: Rows, *, all_views: bool
) -> NDArray[np.float32]:
    """Margins of some rows of images, float32 `(n_views, n_rows)`; of the images as they are unless all are wanted."""
    shown = VIEWS.values() if all_views else [VIEWS["as it is"]]
    margins: list[list[NDArray[np.float64]]] = [[] for _ in shown]
    for start in range(0, len(rows), CHUNK):
        part = rows[start : start + CHUNK]
        for found, view in zip(margins, shown, strict=True):
            seen = Examples.from_arrays(view(images[part]), labels[part])
            found.append(audit.margins(logits(model, seen.images), labels[part]))
    return np.array([np.concatenate(found) for found in margins], dtype=np.float32)


def accuracy(model: torch.nn.Module, faces: Faces, rows: Rows) -> float:
    """Share of the rows that a model is right on; NaN without rows."""
    if not len(rows):
        return float("nan")
    said = logits(model, Examples.from_arrays(faces.images[rows], faces.labels[rows]).images)  # (n, n_classes)
    return float(np.mean(said.argmax(axis=1) == faces.labels[rows]))


def score_unlearned(spec: TrialSpec, method: str, model: torch.nn.Module) -> tuple[NDArray[np.float32], float, float]:
    """`score` of what a method made.

    Raises:
        MethodError: the weights are numbers, what the model answers is not.
    """
    try:
        return score(spec, model)
    except NotANumberError as error:
        raise MethodError(f"{method} diverged: answers that are not numbers; lower its learning rates.") from error


def _bounded(task: Callable[..., T], call: tuple[Any, ...], bound: tuple[str, float]) -> T:
    """The task's result, with one thread; `bound` is a device and the share of its memory that we may take."""
    torch.set_num_threads(1)
    device, share = bound
    bound_memory(resolve_device(device), share)
    return result_of(task, call)


def run_trial(spec: TrialSpec, seed: int, keep_weights: Path | None = None) -> Outcome:
    """One trial in this process.

    Raises:
        DataChangedError: somebody was erased from the data meanwhile; nothing is kept.
    """
    with intact(spec.images) as faces:
        model, seconds, n_forward, n_backward = _make_model(spec, faces, seed)
        scored = score(spec, model) if spec.method is None else score_unlearned(spec, spec.method, model)
        looks = look(spec, model)
    digest = save_weights(model, keep_weights) if keep_weights is not None else None
    return Outcome(seed, *scored, seconds, n_forward, n_backward, digest, looks)


def _make_model(spec: TrialSpec, faces: Faces, seed: int) -> tuple[torch.nn.Module, float, int, int]:
    """The trial's model, with seconds and examples passed forward and backward."""
    retain = Examples.from_arrays(faces.images[spec.retain], faces.labels[spec.retain])
    n_classes = len(faces.classes)
    if spec.method is None:
        trained = train(spec.recipe, retain, n_classes=n_classes, seed=seed, device=spec.device)
        return trained.model, trained.seconds, trained.n_forward, trained.n_backward
    if spec.forget is None or spec.base_weights is None:
        raise ValueError("Expected forget rows and base weights for a trial with a method.")
    base = fresh_model(spec.recipe, n_classes)
    load_weights(base, spec.base_weights, digest=spec.base_digest)
    forget = Examples.from_arrays(faces.images[spec.forget], faces.labels[spec.forget])
    if spec.oracles is not None:
        forget = with_oracles(forget, spec.oracles)
    options = spec.options
    chosen = None if options is None else find_method(spec.method).settings.from_dict(dict(options))
    done = unlearn(
        spec.method, base, forget, retain, recipe=spec.recipe, seed=seed, device=spec.device, settings=chosen
    )
    return done.model, done.cost.seconds, done.cost.n_forward, done.cost.n_backward


def release_processes() -> None:
    """End the child processes: what they hold of people's images goes with them."""
    open_images.cache_clear()
    disconnect()
    below = processes_below()
    get_reusable_executor().shutdown(wait=True, kill_workers=True)
    wait_for_end(below)
