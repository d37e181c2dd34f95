"""Methods compared on the home's own data: banks drawn in one of three ways, and the figures of each method.

What is drawn for a forget set lies in `evaluations/<digest>` of the home, as margins, never weights: an evaluation that
was killed goes on where it was, and one with more models, experiments or methods draws only what it lacks. The first
models of a `full` evaluation are those of `reuse_n_n`.

The reference models and those of the anchor `retrain` have seeds of their own; so have oracles, originals and runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from audit.studies.comparison import DO_NOTHING, RETRAIN, Candidates, Comparison, compare
from audit.studies.experiments import SETUPS, Pool, Setup
from service.banks import looks
from service.banks.build import BankPlan, build_bank, training_code_version
from service.banks.method_code import method_code_version
from service.banks.oracles import FIRST_SEED as FIRST_ORACLE
from service.banks.oracles import build_oracles, n_wanted, oracle_plan
from service.banks.store import Bank, BankKey, BankStore, ReferenceRow
from service.context import Context
from service.errors import InvalidInputError
from service.models.manifest import library_versions
from service.studies.forget_setup import Origin, Stage, Task, digest_of, forget_originals, run_original, set_stage
from service.training.jobs import Outcome, in_children
from service.training.spec import intact, require_intact
from unlearning.devices import describe_device, resolve_device
from unlearning.methods import find_method, settings_for

FEWEST_MODELS = 8  # fewer cannot be halved and still have a spread

OnProgress = Callable[[int, int], None]
"""Called with (models there, models wanted)."""


OnFailure = Callable[[Task, str], None]
"""Called with a task and why it gave no model."""


@dataclass(frozen=True)
class Experiment:
    """What is asked.

    Attributes:
        methods: to compare; the anchors come by themselves.
        people: user ids, forgotten together.
        setup: how banks are drawn, see `audit.studies.experiments`.
        n_models: models of a kind in a bank; a reuse experiment draws half of them.
        n_experiments: for `full` each has banks of its own.
        seed: of the draws from the banks; the models do not depend on it.

    Raises:
        InvalidInputError: nothing to compare or forget, or a number out of range.
        MethodError: an unknown method.
    """

    methods: tuple[str, ...]
    people: tuple[str, ...]
    setup: Setup = "reuse_n_1"
    n_models: int = 64
    n_experiments: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if spares := [name for name in self.methods if find_method(name).needs_spare]:
            raise InvalidInputError(
                f"Expected methods that start from the original; {', '.join(spares)} starts from a model that never "
                "saw the forget set, and there is nothing to compare."
            )
        object.__setattr__(self, "methods", tuple(dict.fromkeys(m for m in self.methods if m != RETRAIN)))
        object.__setattr__(self, "people", tuple(dict.fromkeys(self.people)))
        if not self.people:
            raise InvalidInputError("Expected at least one person to forget; name one of the training split.")
        if self.setup not in SETUPS:
            raise InvalidInputError(f"Expected setup to be one of {', '.join(SETUPS)}, got {self.setup!r}.")
        if self.n_models < FEWEST_MODELS or self.n_experiments < 2:
            raise InvalidInputError(
                f"Expected at least {FEWEST_MODELS} models a bank and 2 experiments, got {self.n_models} and "
                f"{self.n_experiments}."
            )

    @property
    def n_sets(self) -> int:
        """Banks of each kind."""
        return self.n_experiments if self.setup == "full" else 1

    @property
    def n_each(self) -> int:
        """Models of each kind over all banks."""
        return self.n_sets * self.n_models

    @property
    def candidates(self) -> tuple[str, ...]:
        """Whatever starts from an original."""
        return (DO_NOTHING, *self.methods)


@dataclass(frozen=True)
class Workload:
    """What an experiment still has to train, and seconds a model if any was trained here before."""

    n_trainings: int
    n_runs: int
    n_there: int
    training_seconds: float | None

    def sentence(self) -> str:
        """The cost, before it is spent."""
        if not self.n_trainings:
            return f"All {self.n_there} models are here already."
        models = "1 model" if self.n_trainings == 1 else f"{self.n_trainings} models"
        sentence = f"{models} to train and {self.n_runs} runs of methods"
        if self.training_seconds is not None:
            minutes = self.n_trainings * self.training_seconds / 60
            time = f"about {minutes:.0f} min" if minutes >= 1 else "less than a minute"
            sentence += f", the trainings alone {time} of one core"
        return sentence + (f"; {self.n_there} models are here already." if self.n_there else ".")


def store_of(context: Context, stage: Stage) -> BankStore:
    """The banks drawn on a stage."""
    return BankStore(context.settings.evaluations_folder / stage.digest[:32])


def workload(context: Context, experiment: Experiment, stage: Stage) -> Workload:
    """What `draw` would have to do now."""
    store, n = store_of(context, stage), experiment.n_each
    n_references = len(store.missing_seeds(stage.plan.key, 2 * n))
    keys = bank_keys(context, stage, experiment).values()
    missing = [store.missing_seeds(key, n) for key in keys]
    originals = {seed if experiment.setup != "reuse_n_1" else 0 for seeds in missing for seed in seeds}
    n_runs = sum(map(len, missing))
    n_oracles = _n_oracles(context, stage, experiment)
    oracles_missing = store.missing_seeds(oracle_plan(stage.plan).key, n_oracles, first=FIRST_ORACLE)
    here, ahead = (bank.status(now=context.now()) for bank in (store, BankStore(context.settings.banks_folder)))
    known = [status for status in here if status.key == stage.plan.key and status.n_models] or [
        status for status in ahead if status.key.recipe_digest == stage.plan.key.recipe_digest and status.n_models
    ]
    return Workload(
        n_trainings=n_references + len(originals) + len(oracles_missing),
        n_runs=n_runs,
        n_there=2 * n + len(missing) * n - n_references - n_runs + n_oracles - len(oracles_missing),
        training_seconds=known[0].cost_seconds / known[0].n_models if known else None,
    )


def evaluate(
    context: Context,
    experiment: Experiment,
    *,
    on_progress: OnProgress = lambda done, wanted: None,
    on_method: OnProgress = lambda done, wanted: None,
) -> Comparison:
    """Draw what is missing and judge every method; the banks stay for the next evaluation.

    Raises:
        as `set_stage`; MethodError: a method diverged; DataChangedError: somebody was erased meanwhile.
    """
    stage = set_stage(context, experiment.people)
    with intact(stage.plan.spec.images):
        retrained, candidates = draw(context, experiment, stage, on_progress)
    spec, settings = stage.plan.spec, context.settings
    tuned = {
        m
        for m in experiment.methods
        if settings_for(m, spec.recipe, settings.tuned) != find_method(m).settings(recipe=spec.recipe)
    }
    provenance = {
        "Recipe": f"{spec.recipe.name} ({spec.recipe.digest[:16]}…)",
        "Data manifest": spec.images.manifest_digest,
        "Models trained on": f"{len(spec.retain)} images, originals on {len(stage.origin.everybody)}",
        "Accuracy on held-out subjects": f"over {len(spec.test)} images",
        "Settings": "; ".join(
            f"{m}: {'tuned for this recipe' if m in tuned else 'authors’'}" for m in experiment.methods
        )
        or "–",
        "Device": describe_device(resolve_device(spec.device)),
        "Seed of the draws": str(experiment.seed),
        **library_versions(),
    }
    return compare(
        experiment.setup,
        candidates,
        retrained,
        n_people=len(experiment.people),
        seed=experiment.seed,
        n_experiments=experiment.n_experiments,
        provenance=provenance,
        created_at=context.now(),
        on_method=on_method,
    )


def draw(
    context: Context, experiment: Experiment, stage: Stage, on_progress: OnProgress
) -> tuple[Candidates, dict[str, Candidates]]:
    """The retrained models, and by name the methods' and the anchors'; builds what is missing, keeps it as it comes."""
    n = experiment.n_each
    wanted = (2 + len(experiment.candidates)) * n
    references = draw_references(context, stage, 2 * n, lambda done, _: on_progress(done, wanted))
    retrained, again = (
        _candidates(references, slice(0, n), experiment),
        _candidates(references, slice(n, 2 * n), experiment),
    )
    banks = draw_candidates(context, experiment, stage, lambda done, _: on_progress(2 * n + done, wanted))
    candidates = {name: _candidates(bank, slice(0, n), experiment) for name, bank in banks.items()}
    do_nothing = candidates.pop(DO_NOTHING)
    return retrained, {**candidates, RETRAIN: again, DO_NOTHING: Candidates(do_nothing.pool)}


def draw_references(context: Context, stage: Stage, n_models: int, on_progress: OnProgress) -> Bank:
    """At least `n_models` models trained without the forget set, seeds 0 and up in order."""
    return build_bank(store_of(context, stage), stage.plan, n_models, context.settings, on_progress, now=context.now())


def draw_oracles(context: Context, stage: Stage, n_oracles: int, on_progress: OnProgress) -> NDArray[np.float32]:
    """What so many oracles say of the forget set, `(n_oracles, n_forget)`."""
    bank = build_oracles(
        store_of(context, stage), oracle_plan(stage.plan), n_oracles, context.settings, on_progress, now=context.now()
    )
    return bank.margins[:n_oracles]


def draw_candidates(context: Context, experiment: Experiment, stage: Stage, on_progress: OnProgress) -> dict[str, Bank]:
    """By name, the bank of every method and of the originals themselves."""
    return draw_together(context, [(experiment, stage)], on_progress)[0]


def draw_together(
    context: Context,
    asked: Sequence[tuple[Experiment, Stage]],
    on_progress: OnProgress,
    *,
    on_failure: OnFailure | None = None,
) -> list[dict[str, Bank]]:
    """The banks of several experiments, each original trained once for all of them.

    Args:
        asked: experiments of one setup, each with its stage; all stages of one data folder.
        on_failure: called when a method diverged; its bank is then not among those given. None: the error is raised.
    """
    failed: set[BankKey] = set()
    lacking: dict[tuple[Origin, int, int], list[Task]] = {}
    wanted, n_lacking, keys_of = 0, 0, [bank_keys(context, stage, experiment) for experiment, stage in asked]
    for (experiment, stage), keys in zip(asked, keys_of, strict=True):
        store, n, plan = store_of(context, stage), experiment.n_each, stage.plan
        wanted += len(keys) * n
        n_oracles = _n_oracles(context, stage, experiment)
        oracles = draw_oracles(context, stage, n_oracles, lambda done, wanted: None) if n_oracles else None
        for name, key in keys.items():
            store.begin(
                key, example_ids=plan.example_ids, subject_tags=plan.tags, n_wanted=n, now=context.now(),
                before_write=partial(require_intact, plan.spec.images),
            )  # fmt: skip
            looks.begin(store, plan, key, now=context.now())
            settings = None if name == DO_NOTHING else settings_for(name, plan.spec.recipe, context.settings.tuned)
            for seed in store.missing_seeds(key, n):
                original = 0 if experiment.setup == "reuse_n_1" else seed
                said = oracles if name != DO_NOTHING and find_method(name).needs_oracles else None
                task = Task(stage, name, settings, key, said)
                lacking.setdefault((stage.origin, original, seed), []).append(task)
                n_lacking += 1
    done = wanted - n_lacking
    on_progress(done, wanted)
    calls = ((*what, tasks) for what, tasks in sorted(lacking.items(), key=lambda item: item[0][1:]))
    try:
        for outcomes in in_children(run_original, calls, context.settings):
            for task, outcome in outcomes:
                if isinstance(outcome, Outcome):
                    plan = task.stage.plan
                    kept = partial(require_intact, plan.spec.images)
                    looks.keep(store_of(context, task.stage), plan, task.key, outcome)
                    store_of(context, task.stage).add(task.key, _row(plan, outcome), before_write=kept)
                elif on_failure is None:
                    raise outcome
                else:
                    failed.add(task.key)
                    on_failure(task, str(outcome))
            done += len(outcomes)
            on_progress(done, wanted)
    finally:
        forget_originals()  # with one job it was this process that trained it
    return [
        {
            name: _found(store_of(context, stage), key, experiment.n_each)
            for name, key in keys.items()
            if key not in failed
        }
        for (experiment, stage), keys in zip(asked, keys_of, strict=True)
    ]


def _n_oracles(context: Context, stage: Stage, experiment: Experiment) -> int:
    """Oracles that the experiment's methods read."""
    recipe, tuned = stage.plan.spec.recipe, context.settings.tuned
    return n_wanted({name: settings_for(name, recipe, tuned).to_dict() for name in experiment.methods})


def bank_keys(context: Context, stage: Stage, experiment: Experiment) -> dict[str, BankKey]:
    """By name, the key of the bank: stage, method, its settings and code, and where its originals come from."""
    recipe = stage.plan.spec.recipe
    origin = "one original" if experiment.setup == "reuse_n_1" else "an original each"
    keys = {}
    for name in experiment.candidates:
        options = {} if name == DO_NOTHING else settings_for(name, recipe, context.settings.tuned).to_dict()
        code = training_code_version() if name == DO_NOTHING else method_code_version(name)
        made_by = digest_of(stage.digest, name, json.dumps(options, sort_keys=True), origin)
        keys[name] = replace(stage.plan.key, code_version=code, training_digest=made_by)
    return keys


def _candidates(bank: Bank, rows: slice, experiment: Experiment) -> Candidates:
    """A pool of some of a bank's models, cut into as many sets as the experiment has."""
    margins = bank.margins[rows].astype(np.float64)
    shape = (experiment.n_sets, experiment.n_models)
    retain, test = (values[rows].reshape(shape) for values in (bank.retain_accuracy, bank.test_accuracy))
    return Candidates(Pool(margins.reshape(*shape, margins.shape[1]), retain, test), bank.seconds[rows])


def _row(plan: BankPlan, outcome: Outcome) -> ReferenceRow:
    return ReferenceRow(
        outcome.seed, plan.example_ids, outcome.views, outcome.retain_accuracy, outcome.test_accuracy, outcome.seconds
    )


def _found(store: BankStore, key: BankKey, n_models: int) -> Bank:
    bank = store.find(key, n_models=n_models)
    if bank is None:
        raise RuntimeError(f"Expected a complete bank {key.digest[:12]} after drawing it; its files were changed.")
    return bank
