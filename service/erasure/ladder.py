"""In which order a run tries the rungs of its policy's ladder.

By itself the order is the policy's. Under `Policy.cheapest_first` that rung comes first from which a candidate that
passes is expected for the least: what one candidate costs, over the probability that it passes. For independent trials
this is the order of least expected price (the ratio rule, Smith 1956). Exact retraining costs one training a candidate;
what is dearer stands behind it and is not tried unless all its attempts fail, and so does what cannot be tried at all.

A rung keeps the level of its place in the policy, which was logged before the run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlmodel import col, func, select

from audit.policy import RETRAIN, Policy
from audit.qualification import Bars
from service.banks.qualifications import count_subjects, find_valid
from service.context import Context
from service.store.engine import reading
from service.store.tables import Attempt
from unlearning.recipes import Recipe


@dataclass(frozen=True)
class PricedRung:
    """A rung and what it is expected to cost.

    Attributes:
        trainings: until a candidate passes, in trainings; none if it cannot be tried.
        why: a sentence.
    """

    method: str
    trainings: float | None
    why: str


def steps(policy: Policy, order: Sequence[str]) -> tuple[str, ...]:
    """Methods a run tries, one after another: exact retraining as often as the policy allows.

    Args:
        order: all rungs in the run's order; none for the policy's.
    """
    found: list[str] = []
    for method in order or policy.ladder:
        found += [method] * (policy.retrain_attempts if method == RETRAIN else 1)
    return tuple(found)


def by_price(
    context: Context, policy: Policy, recipe: Recipe, methods: Mapping[str, Mapping[str, Any]], *, has_spare: bool
) -> list[PricedRung]:
    """The rungs of a policy, the cheapest first.

    Args:
        methods: by name, their settings as plain values.
        has_spare: whether there is a spare for the run's subjects.

    Raises:
        FacesError: the data folder's table cannot be read.
    """
    found = [_priced(context, policy, recipe, name, methods[name], has_spare=has_spare) for name in policy.ladder]
    return sorted(found, key=lambda rung: math.inf if rung.trainings is None else rung.trainings)  # ties: the policy's


def _priced(
    context: Context, policy: Policy, recipe: Recipe, name: str, options: Mapping[str, Any], *, has_spare: bool
) -> PricedRung:
    from unlearning.methods import find_method, tuned_record  # torch, which only a run's plan needs

    method, exact_rate = find_method(name), 1.0 - policy.gate_alpha
    if name == RETRAIN:
        return _rung(name, 1.0, exact_rate)
    if method.needs_spare:
        if not has_spare:
            return PricedRung(name, None, "There is no spare for these subjects.")
        return _rung(name, min(1.0, options.get("epochs", 0.0) / recipe.epochs), exact_rate)
    if policy.qualification:
        found = find_valid(
            context, method=name, options=options, recipe=recipe, n_subjects_now=count_subjects(context),
            bars=Bars.of(policy),
        )  # fmt: skip
        if isinstance(found, str):
            return PricedRung(name, None, found)
        return _rung(name, found.cost_share, found.pass_rate)
    tuned = tuned_record(name, recipe, context.settings.tuned)
    share = policy.cost_share_max if tuned is None else float(tuned["record"]["cost_share"])
    return _rung(name, share * (1 + policy.n_models), _past_rate(context, name))


def _rung(name: str, cost: float, rate: float) -> PricedRung:
    if rate <= 0.0:
        return PricedRung(name, None, "No run of it passed the gate when it was qualified.")
    price = cost / rate
    return PricedRung(
        name, price, f"A candidate costs {cost:.2f} trainings and passes with probability {rate:.2f}: {price:.2f}."
    )


def _past_rate(context: Context, name: str) -> float:
    """Share of the method's judged candidates that passed, one success and one failure added (Laplace)."""
    judged = col(Attempt.verdict).in_(("PASSED", "FAILED"))
    with reading(context.engine) as s:
        query = select(Attempt.verdict, func.count()).where(Attempt.method == name, judged).group_by(Attempt.verdict)
        counts = dict(s.exec(query).all())
    return (counts.get("PASSED", 0) + 1) / (sum(counts.values()) + 2)
