"""What a qualification still costs, said before it is paid. Tested in `tests/service/studies/test_qualification.py`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from audit.studies.comparison import DO_NOTHING
from service.banks.oracles import FIRST_SEED as FIRST_ORACLE
from service.banks.oracles import n_wanted, oracle_plan
from service.banks.store import BankStore
from service.context import Context
from service.studies.canaries import Planted, workload
from service.studies.experiments import Experiment, bank_keys, store_of
from service.studies.forget_setup import Stage
from service.studies.looks import N_ORIGINALS, originals_of
from service.studies.lots import Asked, Lot
from unlearning.methods import settings_for, tuned_record
from unlearning.recipes import Recipe
from unlearning.relearning import STEPS


@dataclass(frozen=True)
class Price:
    """What is still to be trained and run.

    Attributes:
        n_trainings: references, originals and oracles.
        n_runs: of methods.
        runs_worth: what the runs cost, in trainings; of a method that was never tuned the policy's bar is taken.
        relearning_worth: what it costs to teach all these models a little again, in trainings, by the number of steps.
        n_there: models that are here already.
        training_seconds: processor seconds of one training, if any was made here before.
    """

    n_trainings: int
    n_runs: int
    runs_worth: float
    n_there: int
    training_seconds: float | None
    relearning_worth: float = 0.0

    def sentence(self) -> str:
        """The price, before it is paid."""
        if not self.n_trainings and not self.n_runs:
            return f"All {self.n_there} models are here already."
        whole = self.n_trainings + self.runs_worth + self.relearning_worth
        models = "1 model" if self.n_trainings == 1 else f"{self.n_trainings} models"
        sentence = f"{models} to train and {self.n_runs} runs of methods, "
        sentence += f"with relearning ({self.relearning_worth:.1f}) " if self.relearning_worth else "together "
        sentence += f"about {whole:.0f} trainings"
        if self.training_seconds is not None:
            seconds = whole * self.training_seconds
            time = f"{seconds / 3600:.1f} h" if seconds >= 5400 else f"{seconds / 60:.0f} min"
            sentence += f", {time if seconds >= 60 else 'less than a minute'} of one core"
        return sentence + (f"; {self.n_there} models are here already." if self.n_there else ".")


def price_of(
    context: Context, asked: Asked, lots: Sequence[Lot], stages: dict[str, Stage], planted: Planted | None
) -> Price:
    """What `qualify` would have to do now."""
    n_trainings = n_runs = n_there = 0
    worth, relearning, originals, known = 0.0, 0.0, False, None
    further = set[int]()

    def share_of(name: str, recipe: Recipe) -> float:
        found = tuned_record(name, recipe, context.settings.tuned)
        share = found["record"].get("cost_share") if found else None
        return asked.policy.cost_share_max if share is None else float(share)

    if planted is not None:
        left = workload(context, planted, asked.methods)
        n_trainings, n_runs, n_there = left.n_trainings, sum(left.n_runs.values()), left.n_there
        worth = sum(n * share_of(name, planted.spec.recipe) for name, n in left.n_runs.items())
    for person, stage in stages.items():
        store, recipe = store_of(context, stage), stage.plan.spec.recipe
        missing = len(store.missing_seeds(stage.plan.key, asked.n_references))
        n_trainings, n_there = n_trainings + missing, n_there + asked.n_references - missing
        once = relearning_share(recipe, len(stage.plan.spec.retain))
        relearning += missing * once
        methods = tuple(lot.method for lot in lots if person in lot.people)
        experiment = Experiment(methods, (person,), "reuse_n_1", n_models=asked.n_runs)
        (beside,) = bank_keys(context, stage, originals_of(person)).values()
        lacking_beside = {seed for seed in store.missing_seeds(beside, 1 + N_ORIGINALS) if seed}
        further |= lacking_beside
        relearning += once * len(lacking_beside)
        for name, key in bank_keys(context, stage, experiment).items():
            lacking = len(store.missing_seeds(key, asked.n_runs))
            originals = originals or lacking > 0
            relearning += once * (lacking if name != DO_NOTHING else lacking > 0)
            if name == DO_NOTHING:
                continue
            n_runs, n_there = n_runs + lacking, n_there + asked.n_runs - lacking
            worth += lacking * share_of(name, recipe)
        n_oracles = n_oracles_of(context, lots, person, stage)
        n_trainings += len(store.missing_seeds(oracle_plan(stage.plan).key, n_oracles, first=FIRST_ORACLE))
        known = known or _training_seconds(context, store, stage)
    return Price(n_trainings + originals + len(further), n_runs, worth, n_there, known, relearning)


def relearning_share(recipe: Recipe, n_retain: int) -> float:
    """Steps by which one model is taught a little again, over those of a training."""
    return STEPS / (recipe.epochs * math.ceil(n_retain / recipe.batch_size))


def _training_seconds(context: Context, store: BankStore, stage: Stage) -> float | None:
    """Of one training by the recipe, if any was made here before."""
    own = [status for status in store.status(now=context.now()) if status.key == stage.plan.key]
    ahead = BankStore(context.settings.banks_folder).status(now=context.now())
    known = own + [status for status in ahead if status.key.recipe_digest == stage.plan.key.recipe_digest]
    return next((status.cost_seconds / status.n_models for status in known if status.n_models), None)


def n_oracles_of(context: Context, lots: Sequence[Lot], person: str, stage: Stage) -> int:
    """Oracles that the methods with this probe subject read."""
    recipe, tuned = stage.plan.spec.recipe, context.settings.tuned
    methods = (lot.method for lot in lots if person in lot.people)
    return n_wanted({name: settings_for(name, recipe, tuned).to_dict() for name in methods})
