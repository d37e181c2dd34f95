"""The checks of a policy, one for each bar, and the verdict that follows from them.

A check is passed, failed, *undetermined* (usually because a bank is too small for the bar; it then says how many models
are needed), or not asked. PASSED means that every check that was asked passed; candidates that are FAILED or
UNDETERMINED are never deployed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from audit.figures import beside, beside_percent
from audit.policy import Policy
from audit.staleness import Staleness
from audit.statistics.distances import Detection
from audit.statistics.exchangeability import Exchangeability, models_needed
from audit.statistics.forgetting import ForgettingRatio
from audit.statistics.gate import Gate
from audit.statistics.intervals import Interval
from audit.statistics.looks import NO_LOOKS, Looked
from audit.statistics.utility import Utility

Verdict = Literal["PASSED", "FAILED", "UNDETERMINED"]

FRESH = Staleness()
NOT_LOOKED = Looked(None, None, NO_LOOKS, NO_LOOKS)
UTILITY_ALPHA = 0.05
"""Level of the test of one model's accuracy: below the bar it still passes if its p-value is above this level."""
SETS = {"retain": "the retain set", "test": "held-out subjects"}

TITLES = {
    "gate": "The gate: audited model among retrained models, all views",
    "features": "Penultimate features of the audited model, p-value",
    "exposure": "Retained subjects under the audited model, smallest adjusted p-value",
    "qualification": "Qualification of the method, ahead of requests",
    "bank_size": "Number of models to compare with",
    "retain_ratio": "Accuracy on the retain set, mean of the method",
    "deployed_retain_ratio": "Accuracy on the retain set, audited model",
    "test_ratio": "Accuracy on held-out subjects, mean of the method",
    "deployed_test_ratio": "Accuracy on held-out subjects, audited model",
    "exchangeability": "Audited model among retrained models, p-value",
    "forgetting_ratio": "Forgetting compared with perfect forgetting",
    "detection": "Unlearned against retrained models, p-value",
    "cost_share": "Cost compared with retraining",
    "reference_staleness": "Subjects erased since the reference models were trained",
}
"""What each check is called in reports."""

MEANINGS = {
    "gate": "its answers on views of the images are unusual among those of models trained without them",
    "features": "its penultimate features differ from those of models trained without the images",
    "qualification": "its method was not shown ahead to forget",
    "retain_ratio": "its accuracy is lower than the policy allows",
    "test_ratio": "its accuracy is lower than the policy allows",
    "deployed_retain_ratio": "its accuracy is lower than the policy allows",
    "deployed_test_ratio": "its accuracy is lower than the policy allows",
    "exchangeability": "its answers on the images are unusual among those of models trained without them",
    "forgetting_ratio": "the method's models can be told from retrained models more easily than the policy allows",
    "detection": "a test tells the method's models from retrained models on the forget set",
    "cost_share": "it cost more than the policy allows",
    "reference_staleness": "more subjects were erased since the reference models were trained than the policy allows",
}
"""What a missed bar says of the model, by check."""
NO_BANK = "The model was audited without a bank of unlearned models, so this check was not asked."


@dataclass(frozen=True)
class Check:
    """One bar of the policy, what was measured, and the result."""

    name: str
    value: float | None
    bar: float | None
    passed: bool | None
    """None: undetermined if `applicable`, else not asked."""
    sentence: str
    applicable: bool = True
    models_needed: int | None = None
    """Where the check is undetermined because a bank is too small: the number of models it needs."""


def verdict_of(checks: Iterable[Check]) -> Verdict:
    """FAILED if any check failed, else UNDETERMINED if a check that was asked is undetermined, else PASSED."""
    asked = [check for check in checks if check.applicable]
    if any(check.passed is not None and not check.passed for check in asked):  # NumPy's False is not `False`
        return "FAILED"
    return "UNDETERMINED" if any(check.passed is None for check in asked) else "PASSED"


def accuracy_check(whose: str, set_: str, ratio: Interval, bar: float) -> Check:
    """A mean accuracy over that of retrained models, on the retain or the test set; `whose` begins the sentence."""
    name = f"{set_}_ratio"
    if math.isnan(ratio.value):
        return Check(name, None, bar, None, f"Retrained models have an accuracy of 0 on {SETS[set_]}.")
    value, bar_text = beside(ratio.value, bar, bar_digits=2)
    sentence = (
        f"{whose} on {SETS[set_]} is {value} times that of retrained models ({ratio.low:.3f} to {ratio.high:.3f}); the "
        f"bar is {bar_text}."
    )
    return Check(name, ratio.value, bar, ratio.value >= bar, sentence)


def forgetting_check(ratio: Interval, bar: float) -> Check:
    """F / F_null where it is determined."""
    value, bar_text = beside(ratio.value, bar, digits=2)
    sentence = (
        f"Forgetting quality is {value} times that of perfect forgetting ({ratio.low:.2f} to {ratio.high:.2f}); the "
        f"bar is {bar_text}."
    )
    return Check("forgetting_ratio", ratio.value, bar, ratio.value >= bar, sentence)


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
    gate: Gate | None = None,
    qualification: str | None = None,
    looked: Looked = NOT_LOOKED,
) -> tuple[Check, ...]:
    """Every check of the policy, in the order of the report.

    `n_unlearned`, `forgetting` and `detection` are None without a bank of unlearned models, `cost_share` for exact
    retraining, `gate` where margins of views are lacking, `qualification` where the method has none that is valid;
    `looked` says itself what was not asked, and why.
    """
    return (
        _gate(policy, rung, gate),
        _features(policy, rung, looked),
        _exposure(looked),
        _qualification(policy, rung, qualification),
        _bank_size(policy, n_retrained if n_unlearned is None else min(n_retrained, n_unlearned)),
        _mean_utility("retain", retain, policy.retain_ratio_min),
        _mean_utility("test", test, policy.test_ratio_min),
        _deployed_utility("retain", retain, policy.retain_ratio_min),
        _deployed_utility("test", test, policy.test_ratio_min),
        _exchangeability(policy.level_at(rung, policy.exchangeability_alpha), deployed),
        _forgetting(policy, forgetting),
        _detection(policy, detection),
        _cost(policy, cost_share),
        _staleness(policy, staleness),
    )


def _gate(policy: Policy, rung: int, gate: Gate | None) -> Check:
    """The smallest of the gate's p-values, each over its share of α, so that it compares with α as a whole."""
    alpha = policy.level_at(rung, policy.gate_alpha)
    if gate is None:
        sentence = "The gate needs margins of every view of the images, of the model and of its references."
        return Check("gate", None, alpha, None, sentence, applicable=alpha > 0)
    p = gate.p_adjusted
    p_text, bar_text = beside(p, alpha, bar_digits=2)
    among = f"{gate.n_models} models trained without the images, over {gate.n_views} views of each image"
    if alpha == 0:
        sentence = f"The audited model among {among}: p = {p_text}; no bar is set."
        return Check("gate", p, alpha, None, sentence, applicable=False)
    found = "is not unusual" if gate.passed else f"is unusual, {gate.finding},"
    sentence = f"The audited model {found} among {among} (p = {p_text}, bar {bar_text})."
    return Check("gate", p, alpha, gate.passed, sentence)


def _features(policy: Policy, rung: int, looked: Looked) -> Check:
    """The smaller of both sides' p-values, each over its share of α; how often the same test rejects originals."""
    alpha, found = policy.level_at(rung, policy.features_alpha), looked.features
    if found is None:
        sentence = f"The penultimate features cannot be compared: {looked.features_lacking}."
        return Check("features", None, alpha, None, sentence, applicable=alpha > 0)
    p = found.gate.p_adjusted
    p_text, bar_text = beside(p, alpha or found.gate.alpha, bar_digits=2)
    n = found.gate.n_judging
    power = (
        f" At a level of {found.gate.alpha:g} it rejects {found.n_originals_told_apart} of "
        f"{found.gate.n_originals} models trained with them."
    )
    if alpha == 0:
        sentence = (
            f"The audited model's penultimate features among those of {n} models trained without the images: p = "
            f"{p_text}; no bar is set.{power}"
        )
        return Check("features", p, alpha, None, sentence, applicable=False)
    how = "not unusual" if found.gate.passed else "unusual"
    sentence = (
        f"The audited model's penultimate features are {how} among those of {n} models trained without the images "
        f"(p = {p_text}, bar {bar_text}).{power}"
    )
    return Check("features", p, alpha, found.gate.passed, sentence)


def _exposure(looked: Looked) -> Check:
    """The smallest adjusted p-value over retained subjects. It has no bar: its power is known from simulation only."""
    found = looked.exposure
    if found is None:
        sentence = f"Whether retained subjects became more exposed cannot be told: {looked.others_lacking}."
        return Check("exposure", None, 0.0, None, sentence, applicable=False)
    p_text, level = beside(found.smallest_adjusted_p, found.alpha, bar_digits=2)
    who = "none is" if not found.n_more_exposed else "1 is" if found.n_more_exposed == 1 else None
    sentence = (
        f"Of {found.n_subjects} retained subjects {who or f'{found.n_more_exposed} are'} more exposed under the "
        f"audited model than under models trained without the images (smallest adjusted p = {p_text}, false discovery "
        f"rate {level}); no bar is set."
    )
    return Check("exposure", found.smallest_adjusted_p, 0.0, None, sentence, applicable=False)


def _qualification(policy: Policy, rung: int, statement: str | None) -> Check:
    """Whether the method was shown ahead, on subjects drawn by lot, to forget as retraining does."""
    if policy.is_exact(rung):
        return Check(
            "qualification",
            None,
            None,
            None,
            "No weight of the candidate depended on the forget set; such a method needs no qualification.",
            applicable=False,
        )
    if not policy.qualification:
        sentence = "The method is judged by a bank of its runs for this request, not by a qualification."
        return Check("qualification", None, None, None, sentence, applicable=False)
    if statement is None:
        sentence = "The method has no valid qualification, and no bank of its runs was drawn for this request."
        return Check("qualification", None, None, None, sentence)
    return Check("qualification", None, None, True, statement)


def _bank_size(policy: Policy, smallest: int) -> Check:
    enough = smallest >= policy.n_models
    return Check(
        "bank_size",
        smallest,
        policy.n_models,
        True if enough else None,
        f"The smallest bank holds {smallest} models; the policy asks for {policy.n_models}.",
        models_needed=None if enough else policy.n_models,
    )


def _mean_utility(set_: str, figures: Utility, bar: float) -> Check:
    """The method's utility: mean accuracy of its runs over that of retrained models, as in the competition's score."""
    if figures.ratio is None:
        return Check(f"{set_}_ratio", None, bar, None, NO_BANK, applicable=False)
    return accuracy_check("The mean accuracy of the method's models", set_, figures.ratio, bar)


def _deployed_utility(set_: str, figures: Utility, bar: float) -> Check:
    """The deployed model's accuracy: at least the bar, or no worse than single retrained models, which vary too."""
    name, ratio, p = f"deployed_{set_}_ratio", figures.deployed.ratio.value, figures.deployed.p_value
    if math.isnan(ratio):
        return Check(name, None, bar, None, f"Retrained models have an accuracy of 0 on {SETS[set_]}.")
    at_bar, usual = ratio >= bar, p > UTILITY_ALPHA
    value, bar_text = beside(ratio, bar, bar_digits=2)
    p_text, _ = beside(p, UTILITY_ALPHA)
    sentence = f"The audited model's accuracy on {SETS[set_]} is {value} times the mean of retrained models"
    if at_bar:
        sentence += f"; the bar is {bar_text}."
    elif usual:
        sentence += f", below the bar of {bar_text} but no worse than single retrained models (p = {p_text})."
    else:
        sentence += f", below the bar of {bar_text} and worse than single retrained models (p = {p_text})."
    return Check(name, ratio, bar, at_bar or usual, sentence)


def _exchangeability(alpha: float, deployed: Exchangeability) -> Check:
    p = deployed.p_value
    needed = models_needed(alpha)
    p_text, bar_text = beside(p, alpha, bar_digits=2)
    if deployed.n_models < needed:
        sentence = (
            f"{deployed.n_models} reference models are too few for a two-sided test at {bar_text}; it needs {needed}."
        )
        return Check("exchangeability", p, alpha, None, sentence, models_needed=needed)
    if alpha == 0:
        sentence = f"The audited model among {deployed.n_models} retrained models: p = {p_text}; no bar is set."
        return Check("exchangeability", p, alpha, None, sentence, applicable=False)
    unusual = "unusual" if p < alpha else "not unusual"
    sentence = (
        f"On the forget set the audited model is {unusual} among {deployed.n_models} retrained models "
        f"(p = {p_text}, bar {bar_text})."
    )
    return Check("exchangeability", p, alpha, p >= alpha, sentence)


def _forgetting(policy: Policy, forgetting: ForgettingRatio | None) -> Check:
    name, bar = "forgetting_ratio", policy.forgetting_ratio_min
    if forgetting is None:
        return Check(name, None, bar, None, NO_BANK, applicable=False)
    ratio = forgetting.ratio
    if math.isnan(ratio.value):
        sentence = (
            f"ε is undetermined with {forgetting.n_models_a_side} models a side; a bank of {policy.n_models} models "
            "may be enough."
        )
        return Check(name, None, bar, None, sentence, models_needed=policy.n_models)
    return forgetting_check(ratio, bar)


def _detection(policy: Policy, detection: Detection | None) -> Check:
    name, alpha = "detection", policy.detection_alpha
    if detection is None:
        return Check(name, None, alpha, None, NO_BANK, applicable=False)
    p = detection.ks_combined_p
    p_text, bar_text = beside(p, alpha, bar_digits=2)
    if alpha == 0:
        sentence = f"Unlearned against retrained models on the whole forget set: p = {p_text}; no bar is set."
        return Check(name, p, alpha, None, sentence, applicable=False)
    tells = "tells" if p < alpha else "does not tell"
    sentence = (
        f"The test on the whole forget set {tells} unlearned from retrained models (p = {p_text}, bar {bar_text})."
    )
    return Check(name, p, alpha, p >= alpha, sentence)


def _cost(policy: Policy, cost_share: float | None) -> Check:
    name, bar = "cost_share", policy.cost_share_max
    if cost_share is None:
        return Check(name, None, bar, None, "Exact retraining has no bar of cost.", applicable=False)
    value, bar_text = beside_percent(cost_share, bar)
    sentence = f"The method took {value}% of retraining's time; at most {bar_text}% is allowed."
    return Check(name, cost_share, bar, cost_share <= bar, sentence)


def _staleness(policy: Policy, staleness: Staleness) -> Check:
    """Whether the reference models were trained on the present data, or on data near enough to them."""
    share, bar = staleness.share, policy.staleness_max
    value, bar_text = beside_percent(share, bar)
    sentence = f"{staleness.sentence} Share erased: {value}%; at most {bar_text}% is allowed."
    return Check("reference_staleness", share, bar, share <= bar, sentence)
