"""The bars of a policy, one check each, and the verdict they add up to.

A check is passed, failed, *undetermined* when the banks are too small for the bar asked (it then says how many models
would do), or not asked at all. PASSED needs every check that is asked passed; FAILED and UNDETERMINED never deploy.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from audit.policy import Policy
from audit.staleness import Staleness
from audit.statistics.distances import Detection
from audit.statistics.exchangeability import Exchangeability, models_needed
from audit.statistics.forgetting import ForgettingRatio
from audit.statistics.utility import Utility

Verdict = Literal["PASSED", "FAILED", "UNDETERMINED"]

FRESH = Staleness()
UTILITY_ALPHA = 0.05
"""One model below the bar of utility still passes unless fewer than 5 % of retrained models do as badly."""


@dataclass(frozen=True)
class Check:
    """One bar and how the candidate stands to it."""

    name: str
    value: float | None
    bar: float | None
    passed: bool | None
    """None: undetermined if `applicable`, else not asked."""
    sentence: str
    applicable: bool = True
    models_needed: int | None = None
    """If undetermined for want of models: how many a bank would do."""


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """FAILED if any check failed, else UNDETERMINED if one that is asked is, else PASSED."""
    asked = [check for check in checks if check.applicable]
    if any(check.passed is not None and not check.passed for check in asked):  # NumPy's False is not `False`
        return "FAILED"
    return "UNDETERMINED" if any(check.passed is None for check in asked) else "PASSED"


def all_checks(
    policy: Policy,
    *,
    rung: int,
    n_retrained: int,
    n_unlearned: int | None,
    retain: Utility,
    test: Utility,
    deployed: Exchangeability,
    forgetting: ForgettingRatio | None,
    detection: Detection | None,
    cost_share: float | None,
    staleness: Staleness = FRESH,
) -> tuple[Check, ...]:
    """Every check of the policy, in the order of the report. None stands for what exact retraining need not show."""
    return (
        _bank_size(policy, n_retrained if n_unlearned is None else min(n_retrained, n_unlearned)),
        _mean_utility("retain", retain, policy.retain_ratio_min),
        _mean_utility("test", test, policy.test_ratio_min),
        _deployed_utility("retain", retain, policy.retain_ratio_min),
        _deployed_utility("test", test, policy.test_ratio_min),
        _exchangeability(policy.alpha_at(rung), deployed),
        _forgetting(policy, forgetting),
        _detection(policy, detection),
        _cost(policy, cost_share),
        _staleness(policy, staleness),
    )


def _bank_size(policy: Policy, smaller: int) -> Check:
    enough = smaller >= policy.n_models
    return Check(
        "bank_size",
        smaller,
        policy.n_models,
        True if enough else None,
        f"The smaller bank holds {smaller} models; the policy asks for {policy.n_models}.",
        models_needed=None if enough else policy.n_models,
    )


def _mean_utility(set_: str, figures: Utility, bar: float) -> Check:
    """The method's utility: mean accuracy of its runs over that of retrained models, as in the competition's score."""
    name, ratio = f"{set_}_ratio", figures.ratio
    if ratio is None:
        return Check(name, None, bar, None, "Exact retraining was audited without a bank of its own.", applicable=False)
    if math.isnan(ratio.value):
        return Check(name, None, bar, None, f"Retrained models get nothing right on the {set_} set.")
    sentence = (
        f"Mean accuracy on the {set_} set is {ratio.value:.3f} of retrained models' "
        f"({ratio.low:.3f} to {ratio.high:.3f}); the bar is {bar:.2f}."
    )
    return Check(name, ratio.value, bar, ratio.value >= bar, sentence)


def _deployed_utility(set_: str, figures: Utility, bar: float) -> Check:
    """The model that users get. One model's accuracy scatters, so no worse than retrained models do is good enough."""
    name, ratio, p = f"deployed_{set_}_ratio", figures.deployed.ratio.value, figures.deployed.p_value
    if math.isnan(ratio):
        return Check(name, None, bar, None, f"Retrained models get nothing right on the {set_} set.")
    at_bar, usual = ratio >= bar, p > UTILITY_ALPHA
    sentence = f"The deployed model's accuracy on the {set_} set is {ratio:.3f} of retrained models' mean"
    if at_bar:
        sentence += f"; the bar is {bar:.2f}."
    elif usual:
        sentence += f", below the bar of {bar:.2f} but no worse than retrained models themselves (p = {p:.3f})."
    else:
        sentence += f", below the bar of {bar:.2f} and worse than retrained models are (p = {p:.3f})."
    return Check(name, ratio, bar, at_bar or usual, sentence)


def _exchangeability(alpha: float, deployed: Exchangeability) -> Check:
    p = deployed.p_value
    needed = models_needed(alpha)
    if deployed.n_models < needed:
        sentence = f"{deployed.n_models} references cannot carry a two-sided test at {alpha:.3f}; {needed} would do."
        return Check("exchangeability", p, alpha, None, sentence, models_needed=needed)
    unusual = "unusual" if p < alpha else "not unusual"
    sentence = (
        f"Among {deployed.n_models} retrained models the deployed one is {unusual} on the forget set "
        f"(p = {p:.3f}, bar {alpha:.2f})."
    )
    return Check("exchangeability", p, alpha, p >= alpha if alpha > 0 else None, sentence, applicable=alpha > 0)


def _forgetting(policy: Policy, forgetting: ForgettingRatio | None) -> Check:
    name, bar = "forgetting_ratio", policy.forgetting_ratio_min
    if forgetting is None:
        return Check(name, None, bar, None, "Exact retraining was audited without a bank of its own.", applicable=False)
    ratio = forgetting.ratio
    if math.isnan(ratio.value):
        sentence = (
            f"ε could not be determined with {forgetting.n_models_a_side} models a side; {policy.n_models} may do."
        )
        return Check(name, None, bar, None, sentence, models_needed=policy.n_models)
    sentence = (
        f"Forgetting quality is {ratio.value:.2f} of a perfect unlearner's ({ratio.low:.2f} to {ratio.high:.2f}); "
        f"the bar is {bar:.2f}."
    )
    return Check(name, ratio.value, bar, ratio.value >= bar, sentence)


def _detection(policy: Policy, detection: Detection | None) -> Check:
    name, alpha = "detection", policy.detection_alpha
    if detection is None:
        return Check(
            name, None, alpha, None, "Exact retraining was audited without a bank of its own.", applicable=False
        )
    p = detection.ks_combined_p
    found = "differ" if p < alpha else "do not differ measurably"
    sentence = f"Unlearned and retrained models {found} on the forget set as a whole (p = {p:.3f}, bar {alpha:.2f})."
    if alpha == 0:
        sentence = f"Unlearned against retrained models on the forget set as a whole: p = {p:.3f}; no bar is set."
    return Check(name, p, alpha, p >= alpha if alpha > 0 else None, sentence, applicable=alpha > 0)


def _cost(policy: Policy, cost_share: float | None) -> Check:
    name, bar = "cost_share", policy.cost_share_max
    if cost_share is None:
        return Check(name, None, bar, None, "Exact retraining costs what it costs.", applicable=False)
    sentence = f"It cost {cost_share:.1%} of retraining's time; at most {bar:.0%} is allowed."
    return Check(name, cost_share, bar, cost_share <= bar, sentence)


def _staleness(policy: Policy, staleness: Staleness) -> Check:
    """Whether the references are of this generation of the data, or near enough to it."""
    share, bar = staleness.share, policy.staleness_max
    sentence = f"{staleness.sentence} At most {bar:.0%} is allowed."
    return Check("reference_staleness", share, bar, share <= bar, sentence)
