"""A stage on which people are forgotten: what models learn with and without them, an original, and methods run on it.

An original knows the people to forget, so it lives in the memory of the process that trains it, long enough to be
unlearned by every method, and nowhere else.

Tested in `tests/service/studies/test_experiments.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from audit.studies.comparison import DO_NOTHING
from service.banks.build import BankPlan, plan_exact_bank, rows_digest
from service.banks.store import BankKey
from service.context import Context
from service.errors import ConflictError, InvalidInputError
from service.training.answers import require_good_model_in_service
from service.training.data import asked_to_go, images_in_service, recipe_of
from service.training.jobs import Outcome, score, score_unlearned
from service.training.looks import Looks, look
from service.training.spec import Rows, TrialSpec, intact, open_images
from unlearning.errors import MethodError
from unlearning.faces import Faces
from unlearning.methods import Settings as MethodSettings
from unlearning.methods import unlearn
from unlearning.procedures.oracles import with_oracles
from unlearning.training import Examples, train

ORIGINAL_SEEDS, UNLEARNING_SEEDS = 1_000_003, 2_000_003  # references start at 0


@dataclass(frozen=True)
class Origin:
    """What originals learn from; equal and hashed by its digest, so that forget sets share their originals.

    Attributes:
        spec: images, recipe and device; its rows are of no matter here.
        everybody: rows learned from, the forget set among them.
    """

    digest: str
    spec: TrialSpec = field(compare=False, repr=False)
    everybody: Rows = field(compare=False, repr=False)


@dataclass(frozen=True)
class Stage:
    """A forget set and all that its models have in common; equal and hashed by its digest.

    Attributes:
        plan: bank of reference models, trained without the forget set; `plan.spec.forget` is the forget set.
        origin: of the originals.
    """

    digest: str
    plan: BankPlan = field(compare=False, repr=False)
    origin: Origin = field(compare=False, repr=False)


def set_stage(context: Context, people: Iterable[str], *, with_looks: bool = False) -> Stage:
    """The stage on which people are forgotten; who asked to be erased is in no model of it.

    Args:
        people: to forget, together.
        with_looks: features and others' margins of the stage's models are wanted (`service.training.looks`).

    Raises:
        InvalidInputError: somebody is not of the training split.
        ConflictError: somebody asked to be erased.
        FacesError: the data folder breaks a rule.
        PoorModelError: the model in service answers one class only.
    """
    require_good_model_in_service(context)
    recipe = recipe_of(context)
    images = images_in_service(context, recipe)
    faces = open_images(images)
    known, wanted = set(faces.train_subjects()), set(people)
    if unknown := wanted - known:
        raise InvalidInputError(f"Expected people of the training split, but {len(unknown)} of those named are not.")
    absent = asked_to_go(context, faces)
    if erased := wanted & absent:
        raise ConflictError(
            f"Expected people who may be trained on, but {len(erased)} of those named asked to be erased; name others."
        )
    plan = plan_exact_bank(context, recipe, images, wanted, absent)
    sample = plan.sample if with_looks else None
    plan = replace(plan, spec=replace(plan.spec, forget=plan.spec.scored, sample=sample), sample=sample)
    everybody = faces.where(split="train", without=absent)
    origin = Origin(digest_of(recipe.digest, rows_digest(faces, everybody)), plan.spec, everybody)
    return Stage(digest_of(plan.key.digest, rows_digest(faces, everybody)), plan, origin)


@dataclass(frozen=True)
class Task:
    """One method to run on an original, and the bank its figures go to.

    Attributes:
        settings: None for `DO_NOTHING`.
        oracles: what oracles say of the forget set, `(n_oracles, n_forget)`, for a method that reads it.
    """

    stage: Stage
    method: str
    settings: MethodSettings | None
    key: BankKey
    oracles: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)


def run_original(
    origin: Origin, original: int, seed: int, tasks: Sequence[Task]
) -> list[tuple[Task, Outcome | MethodError]]:
    """Train an original, unlearn it by each task in turn, and score what came out; of a diverged run the error.

    Args:
        origin: what it learns from.
        original: number of the original.
        seed: number of the run; of its row in the banks.
        tasks: methods and the forget sets they forget.

    Raises:
        DataChangedError: somebody was erased from the data meanwhile.
    """
    with intact(origin.spec.images) as faces:
        model = original_of(origin, original)
        return [(task, _run_task(task, faces, model, original, seed)) for task in tasks]


def _run_task(task: Task, faces: Faces, model: torch.nn.Module, original: int, seed: int) -> Outcome | MethodError:
    if task.method == DO_NOTHING:
        scored, looks = _seen_original(task.stage, task.key, original)
        return Outcome(seed, *scored, 0.0, 0, 0, looks=looks)
    spec = _spec_of(task.stage, task.key)
    forget, retain = (
        Examples.from_arrays(faces.images[rows], faces.labels[rows]) for rows in (spec.scored, spec.retain)
    )
    try:
        if task.oracles is not None:
            forget = with_oracles(forget, task.oracles)
        done = unlearn(
            task.method, model, forget, retain, recipe=spec.recipe, seed=UNLEARNING_SEEDS + seed,
            device=spec.device, settings=task.settings,
        )  # fmt: skip
        scored, looks = score_unlearned(spec, task.method, done.model), look(spec, done.model)
    except MethodError as error:
        return error
    cost = done.cost
    return Outcome(seed, *scored, cost.seconds, cost.n_forward, cost.n_backward, looks=looks)


def _spec_of(stage: Stage, key: BankKey) -> TrialSpec:
    """What a trial of a bank measures on a stage."""
    return replace(stage.plan.spec, with_views=key.n_views > 1, with_relearning=key.with_relearning)


@lru_cache(maxsize=64)
def _seen_original(
    stage: Stage, key: BankKey, original: int
) -> tuple[tuple[NDArray[np.float32], float, float], Looks | None]:
    """What an original says on a stage, and what was seen of it, once: all rows of `reuse_n_1` are of the same."""
    spec = _spec_of(stage, key)
    with intact(stage.origin.spec.images):
        model = original_of(stage.origin, original)
        return score(spec, model), look(spec, model)


def forget_originals() -> None:
    """Drop the originals that this process holds, and what they said."""
    original_of.cache_clear()
    _seen_original.cache_clear()


@lru_cache(maxsize=1)
def original_of(origin: Origin, original: int) -> torch.nn.Module:
    """The original of that number; kept until the next one, for the runs of `reuse_n_1` start from the same."""
    spec = origin.spec
    with intact(spec.images) as faces:  # one of changed data must not stay in the cache
        data = Examples.from_arrays(faces.images[origin.everybody], faces.labels[origin.everybody])
        n_classes, seed = len(faces.classes), ORIGINAL_SEEDS + original
        return train(spec.recipe, data, n_classes=n_classes, seed=seed, device=spec.device).model


def digest_of(*words: str) -> str:
    """SHA-256 in hex of some words."""
    return hashlib.sha256("\n".join(words).encode()).hexdigest()
