"""Canaries for `service.studies.qualification`: planted, learned, forgotten by each method, judged by the gate.

A canary is a subject drawn in code (`unlearning.faces.sources.synthetic`) whose images bear labels drawn by chance, so
that a model can get them right only by learning them by heart. They are put beside the training split in the memory of
the process that trains; no file of them is ever written, no model that saw them is kept, and none of what is kept here
is of anybody: margins of the canaries alone, in `evaluations/`, so that a command that was killed goes on where it was.

N models learn from everybody without the canaries: references, and retrained models to be judged by them. A few
originals learn from everybody and the canaries, and each method forgets all canaries together, twice from each
original. `audit.canaries` says what the gate makes of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from audit.canaries import Canaries, judge_canaries
from audit.errors import NotANumberError
from audit.studies.comparison import DO_NOTHING
from service.banks.build import training_code_version
from service.banks.file_format import OUT
from service.banks.method_code import method_code_version
from service.banks.oracles import n_wanted
from service.banks.store import Bank, BankKey, BankStore, ReferenceRow
from service.context import Context
from service.studies.forget_setup import UNLEARNING_SEEDS, Stage, digest_of
from service.training.jobs import Outcome, accuracy, in_children, margins_in_views
from service.training.spec import TrialSpec, intact, open_images, require_intact
from unlearning.errors import MethodError
from unlearning.faces import Faces
from unlearning.faces.sources import synthetic
from unlearning.methods import Settings as MethodSettings
from unlearning.methods import find_method, settings_for, unlearn
from unlearning.procedures.oracles import with_oracles
from unlearning.training import Examples, train

N_REFERENCES, N_RETRAINED, N_ORIGINALS, RUNS_EACH = 8, 4, 3, 2
"""Models of each kind, and runs of each method from each original."""
FEWEST_IMAGES, MOST_IMAGES = 3, 10
"""A canary has as many images as most training subjects have, within these."""
_FIRST_ORACLE = 1_000
_ORIGINAL_SEEDS = 5_000_003
_WITHOUT = "without canaries"

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class Planted:
    """Canaries beside a training split; equal and hashed by its digest.

    Attributes:
        spec: images, recipe, device; `retain` is the training split without the canaries.
        test_digest: of the rows that give test accuracy.
        images, labels: of the canaries, canary by canary: uint8 `(n, height, width, channels)`, int64 `(n,)`.
    """

    digest: str
    n_canaries: int
    spec: TrialSpec = field(compare=False, repr=False)
    test_digest: str = field(compare=False, repr=False)
    images: NDArray[np.uint8] = field(compare=False, repr=False)
    labels: NDArray[np.int64] = field(compare=False, repr=False)

    def without(self, faces: Faces) -> Examples:
        """The training split."""
        rows = self.spec.retain
        return Examples.from_arrays(faces.images[rows], faces.labels[rows])

    @property
    def canaries(self) -> Examples:
        """The planted images."""
        return Examples.from_arrays(self.images, self.labels)


@dataclass(frozen=True)
class _Runs:
    """What an original is still wanted for: itself, and by method the settings and the seeds of runs."""

    number: int
    itself: bool
    methods: Mapping[str, tuple[MethodSettings, tuple[int, ...]]]
    oracles: NDArray[np.float32] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Workload:
    """Models that `judge` would have to train, runs by method, and models that are here."""

    n_trainings: int
    n_runs: Mapping[str, int]
    n_there: int


def plant(stage: Stage, n_canaries: int) -> Planted:
    """Draw the canaries for the data and the recipe of a stage, always the same ones for the same data and recipe."""
    origin, recipe = stage.origin, stage.plan.spec.recipe
    faces, everybody = open_images(origin.spec.images), origin.everybody
    _, counts = np.unique(faces.subject_of[everybody], return_counts=True)
    n_images = int(np.clip(np.median(counts), FEWEST_IMAGES, MOST_IMAGES))
    digest = digest_of("canaries 1", origin.digest, str(n_canaries), str(n_images))
    seed = int(digest[:8], 16)
    drawn = synthetic.draw(n_subjects=n_canaries, images_per_subject=n_images, size=recipe.image_size, seed=seed)
    labels = np.random.default_rng(seed).integers(len(faces.classes), size=len(drawn))
    spec = replace(origin.spec, retain=everybody, scored=everybody[:0], retain_scored=everybody)
    return Planted(
        digest, n_canaries, spec, stage.plan.key.test_digest, _in_channels(drawn.images, recipe.channels), labels
    )


def _in_channels(images: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Colour images as the recipe takes them."""
    if channels == images.shape[3]:
        return images
    return np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in images])


def workload(context: Context, planted: Planted, methods: Sequence[str]) -> Workload:
    """What `judge` would have to do now."""
    store, keys = _store(context, planted), _keys(context, planted, methods)
    n_without = N_REFERENCES + N_RETRAINED
    n_oracles = n_wanted(_options(context, planted, methods))
    missing = store.missing_seeds(keys[_WITHOUT], n_without)
    oracles = store.missing_seeds(keys[_WITHOUT], n_oracles, first=_FIRST_ORACLE)
    runs = _lacking(context, planted, methods, None)
    by_method = {name: sum(len(each.methods[name][1]) for each in runs if name in each.methods) for name in methods}
    n_there = n_without + n_oracles - len(missing) - len(oracles)
    n_there += N_ORIGINALS - sum(each.itself for each in runs)
    n_there += len(methods) * N_ORIGINALS * RUNS_EACH - sum(by_method.values())
    return Workload(len(missing) + len(oracles) + len(runs), by_method, n_there)


def most_trainings(n_methods: int, cost_share: float) -> float:
    """What canaries cost at most, oracles not counted, if no run costs more than a share of a training."""
    return N_REFERENCES + N_RETRAINED + N_ORIGINALS + n_methods * N_ORIGINALS * RUNS_EACH * cost_share


def judge(context: Context, planted: Planted, methods: Sequence[str], on_progress: OnProgress) -> Canaries:
    """Make what is missing, and ask the gate.

    Raises:
        DataChangedError: somebody was erased meanwhile; what was made before stays.
    """
    store, keys = _store(context, planted), _keys(context, planted, methods)
    kept = partial(require_intact, planted.spec.images)
    names = tuple(f"canary-{i}" for i in range(len(planted.labels)))
    tags = tuple(f"canary-{k}" for k in np.repeat(np.arange(planted.n_canaries), len(names) // planted.n_canaries))
    for key in keys.values():
        store.begin(
            key, example_ids=names, subject_tags=tags, n_wanted=N_ORIGINALS, now=context.now(), before_write=kept
        )

    def keep(name: str, outcome: Outcome) -> None:
        row = ReferenceRow(
            outcome.seed, names, outcome.views, outcome.retain_accuracy, outcome.test_accuracy, outcome.seconds
        )
        store.add(keys[name], row, before_write=kept)

    n_without = N_REFERENCES + N_RETRAINED
    n_oracles = n_wanted(_options(context, planted, methods))
    missing = [
        *store.missing_seeds(keys[_WITHOUT], n_without),
        *store.missing_seeds(keys[_WITHOUT], n_oracles, first=_FIRST_ORACLE),
    ]
    wanted = n_without + n_oracles + N_ORIGINALS
    done = wanted - len(missing) - len(_lacking(context, planted, methods, None))
    on_progress(done, wanted)
    for outcome in in_children(train_without, ((planted, seed) for seed in missing), context.settings):
        keep(_WITHOUT, outcome)
        done += 1
        on_progress(done, wanted)
    without = _found(store, keys[_WITHOUT], n_without)
    oracles = without.margins[without.seeds >= _FIRST_ORACLE][:n_oracles] if n_oracles else None
    lacking = _lacking(context, planted, methods, oracles)
    for made in in_children(run_planted, ((planted, each) for each in lacking), context.settings):
        for name, outcome in made:
            keep(name, outcome)
        done += 1
        on_progress(done, wanted)
    views = without.views[without.seeds < n_without].astype(np.float64)
    drawn = {name: store.find(keys[name], n_models=1) for name in methods}  # none of a method that diverged
    return judge_canaries(
        views[:N_REFERENCES],
        _found(store, keys[DO_NOTHING], N_ORIGINALS).views[:N_ORIGINALS],
        views[N_REFERENCES:],
        {name: bank.views for name, bank in drawn.items() if bank is not None},
        planted.n_canaries,
    )


def train_without(planted: Planted, seed: int) -> Outcome:
    """A model trained with everybody and without the canaries."""
    spec = planted.spec
    with intact(spec.images) as faces:
        done = train(spec.recipe, planted.without(faces), n_classes=len(faces.classes), seed=seed, device=spec.device)
        return _outcome(planted, faces, done.model, seed, done.seconds)


def run_planted(planted: Planted, wanted: _Runs) -> list[tuple[str, Outcome]]:
    """An original that learned the canaries too, and runs of methods that forget them; none of those that diverged."""
    spec, forget = planted.spec, planted.canaries
    found = []
    with intact(spec.images) as faces:
        retain = planted.without(faces)
        both = Examples(torch.cat([retain.images, forget.images]), torch.cat([retain.labels, forget.labels]))
        seed = _ORIGINAL_SEEDS + wanted.number
        original = train(spec.recipe, both, n_classes=len(faces.classes), seed=seed, device=spec.device)
        if wanted.itself:
            found.append((DO_NOTHING, _outcome(planted, faces, original.model, wanted.number, original.seconds)))
        for name, (settings, seeds) in wanted.methods.items():
            oracles = wanted.oracles if find_method(name).needs_oracles else None
            mine = forget if oracles is None else with_oracles(forget, oracles)
            for run in seeds:
                try:
                    done = unlearn(
                        name, original.model, mine, retain, recipe=spec.recipe, seed=UNLEARNING_SEEDS + run,
                        device=spec.device, settings=settings,
                    )  # fmt: skip
                    found.append((name, _outcome(planted, faces, done.model, run, done.cost.seconds)))
                except (MethodError, NotANumberError):
                    continue
    return found


def _outcome(planted: Planted, faces: Faces, model: torch.nn.Module, seed: int, seconds: float) -> Outcome:
    rows = np.arange(len(planted.labels))
    views = margins_in_views(model, planted.images, planted.labels, rows, all_views=True)
    spec = planted.spec
    right = accuracy(model, faces, spec.retain_scored), accuracy(model, faces, spec.test)
    return Outcome(seed, views, *right, seconds, 0, 0)


def _lacking(
    context: Context, planted: Planted, methods: Sequence[str], oracles: NDArray[np.float32] | None
) -> list[_Runs]:
    """By original what is not there yet."""
    store, keys = _store(context, planted), _keys(context, planted, methods)
    recipe, tuned = planted.spec.recipe, context.settings.tuned
    themselves = store.missing_seeds(keys[DO_NOTHING], N_ORIGINALS)
    missing = {name: store.missing_seeds(keys[name], N_ORIGINALS * RUNS_EACH) for name in methods}
    found = []
    for number in range(N_ORIGINALS):
        seeds = {name: tuple(seed for seed in left if seed // RUNS_EACH == number) for name, left in missing.items()}
        runs = {name: (settings_for(name, recipe, tuned), mine) for name, mine in seeds.items() if mine}
        if runs or number in themselves:
            found.append(_Runs(number, number in themselves, runs, oracles))
    return found


def _store(context: Context, planted: Planted) -> BankStore:
    return BankStore(context.settings.evaluations_folder / planted.digest[:32])


def _options(context: Context, planted: Planted, methods: Sequence[str]) -> dict[str, dict[str, object]]:
    recipe, tuned = planted.spec.recipe, context.settings.tuned
    return {name: settings_for(name, recipe, tuned).to_dict() for name in methods}


def _keys(context: Context, planted: Planted, methods: Sequence[str]) -> dict[str, BankKey]:
    """By what the models are, the key of their bank."""
    code = training_code_version()

    def key(what: str, version: str = code) -> BankKey:
        made_by = digest_of(planted.digest, what)
        return BankKey(planted.spec.recipe.digest, version, made_by, planted.test_digest, statistic=OUT)

    options = _options(context, planted, methods)
    return {
        _WITHOUT: key(_WITHOUT),
        DO_NOTHING: key(DO_NOTHING),
        **{
            name: key(f"{name} {json.dumps(options[name], sort_keys=True)}", method_code_version(name))
            for name in methods
        },
    }


def _found(store: BankStore, key: BankKey, n_models: int) -> Bank:
    bank = store.find(key, n_models=n_models)
    if bank is None:
        raise RuntimeError(f"Expected the bank {key.digest[:12]} after drawing it; its files were changed.")
    return bank
