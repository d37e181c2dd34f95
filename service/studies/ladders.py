"""The cheapest ladder: what results say of each method, what is still to be tuned or qualified, and what follows.

**What an erasure costs by a ladder.** A run of a method costs a share c of a training. With probability r the gate
rejects it, and the next rung is tried; the last rung, exact retraining, costs 1. So rungs of costs c₁, c₂, … cost
c₁ + r₁ (c₂ + r₂ (… + 1)) an erasure. Whatever the rest of a ladder costs, R, a method before it is worth its place
where c + r R < R, that is c / (1 − r) < R; so the cheapest ladder has the methods with c / (1 − r) < 1, in that order.
Both are of the method's qualification (`Qualified`). To c comes the upkeep of what a method reads:
oracles, which have to be trained again when too many subjects are gone.

Spares (`service.banks.spares`) move the training out of the request: their rung costs next to nothing there and comes
first, and the spares of all blocks are trained anew after each run.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from audit.policy import RETRAIN, Policy
from audit.qualification import Bars
from service.banks.qualifications import count_subjects, find_valid, has_failed
from service.context import Context
from service.studies.preparation import Asked, Facts, Plan, is_tuned_here
from service.training.data import recipe_of
from unlearning import files
from unlearning.methods import settings_for

SUFFIX = "-recommended"


@dataclass(frozen=True)
class Measured:
    """What a valid qualification found of a method.

    Attributes:
        cost_share: of a run, in trainings.
        rejected_share: of its runs, by the gate.
        upkeep: of its oracles, in trainings an erasure.
    """

    method: str
    cost_share: float
    rejected_share: float
    upkeep: float = 0.0

    @property
    def worth(self) -> float:
        """Trainings at which it just pays: c / (1 − r)."""
        passed = 1.0 - self.rejected_share
        return (self.cost_share + self.upkeep) / passed if passed > 0 else math.inf


@dataclass(frozen=True)
class Recommendation:
    """A ladder, and what an erasure by it costs at the request, in trainings."""

    ladder: tuple[str, ...]
    trainings: float


def of_spares(context: Context, asked: Asked) -> Measured:
    """The rung that starts from spares: exact, so the gate rejects it with probability α."""
    recipe = recipe_of(context)
    options = settings_for(asked.spare_rung, recipe, context.settings.tuned).to_dict()
    return Measured(asked.spare_rung, min(1.0, options.get("epochs", 0.0) / recipe.epochs), asked.policy.gate_alpha)


def recommend(measured: Sequence[Measured]) -> Recommendation:
    """The ladder that is cheapest at the request."""
    worth_it = sorted((each for each in measured if each.worth < 1.0), key=lambda each: (each.worth, each.method))
    trainings = 1.0
    for each in reversed(worth_it):
        trainings = each.cost_share + each.upkeep + each.rejected_share * trainings
    return Recommendation((*(each.method for each in worth_it), RETRAIN), trainings)


def standing(context: Context, asked: Asked, facts: Facts, method: str) -> Measured | str | None:
    """What is known of a method: figures of its valid qualification, why it failed, or none: it is to be qualified."""
    recipe, bars = recipe_of(context), Bars.of(asked.policy)
    options = settings_for(method, recipe, context.settings.tuned).to_dict()
    found = find_valid(
        context, method=method, options=options, recipe=recipe, n_subjects_now=count_subjects(context), bars=bars
    )
    if isinstance(found, str):
        return found if has_failed(context, method=method, options=options, recipe=recipe, bars=bars) else None
    return Measured(
        method,
        cost_share=found.cost_share,
        rejected_share=1.0 - found.pass_rate,
        upkeep=upkeep(asked.policy, facts, facts.oracles.get(method, 0)),
    )


def to_tune(context: Context, asked: Asked, facts: Facts, plan: Plan) -> list[str]:
    """Methods whose settings are still to be searched: not those that are qualified as they are."""
    return [
        method for method in plan.tuned
        if not is_tuned_here(context, method) and not isinstance(standing(context, asked, facts, method), Measured)
    ]  # fmt: skip


def to_qualify(context: Context, asked: Asked, facts: Facts, plan: Plan) -> list[str]:
    """Methods that have no result with the settings in force; of one that is tuned first, with those it will have."""
    tuned_first = to_tune(context, asked, facts, plan)
    return [
        method for method in plan.methods if method in tuned_first or standing(context, asked, facts, method) is None
    ]  # fmt: skip


def upkeep(policy: Policy, facts: Facts, n_oracles: int) -> float:
    """Trainings an erasure for oracles of all blocks, trained anew whenever the policy's share of subjects is gone."""
    return facts.n_blocks * n_oracles / max(1, math.floor(policy.staleness_max * facts.n_subjects))


def policy_of(policy: Policy, ladder: tuple[str, ...]) -> Policy:
    """The policy with another ladder, under a name of its own."""
    return replace(policy, name=policy.name.removesuffix(SUFFIX) + SUFFIX, ladder=ladder)


def write_policy(context: Context, policy: Policy) -> Path:
    """The policy as a file that `EXPUNGE_POLICY` can name."""
    file = context.settings.home / "recommended-policy.json"
    files.overwrite(file, (json.dumps(policy.to_dict(), indent=2) + "\n").encode(), mode=0o666)
    return file
