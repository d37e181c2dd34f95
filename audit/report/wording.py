"""The words of the report: verdicts, checks and limits for readers who know neither statistics nor machine learning."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

from audit.checks import MEANINGS, SETS, TITLES
from audit.figures import beside, beside_percent
from audit.policy import EXACT
from audit.proof.statement import LIMITS

VERDICT_WORDS = {"PASSED": "Passed", "FAILED": "Failed", "UNDETERMINED": "Undetermined"}

AT_MOST = ("cost_share", "reference_staleness")
PERCENT = ("cost_share", "reference_staleness")
LEVEL = 0.05
"""Level of a reported test for which the policy sets no bar, or a lower one."""
NOTHING_LEARNED = 2.0
"""d′ below which the gate rejects a model that forgot nothing less often than three times in four (docs/gate.md)."""


def learned_sentences(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """How much had been learned of the images, and what the gate could have shown: how a report begins.

    None where no gate was asked.
    """
    if (gate := evaluation.get("gate")) is None:
        return ()
    learned, power = gate["learned"], gate["power"]
    if learned is None:
        return (
            "How much the model had learned of these images is not known, since there are no models trained with "
            "everybody to compare with. So it is not known either how likely the gate is to reject a model that "
            "forgot nothing.",
        )
    low, high = (number(learned[end], digits=1) for end in ("low", "high"))
    first = (
        f"How much had been learned of these images: models trained with them lie {number(learned['value'], digits=1)} "
        f"({low} to {high}) standard deviations above models trained without them."
    )
    second = (
        f"A model that forgot nothing would have been rejected by the gate with probability {number(power, digits=2)}."
    )
    if learned["value"] < NOTHING_LEARNED:
        return first, second, "That is little: whatever the verdict, the gate can show little about these images."
    return first, second


def verdict_sentences(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """What the verdict means, in four sentences.

    Args:
        evaluation: `Evaluation.to_dict()`.
    """
    verdict = evaluation["verdict"]
    policy, method = evaluation["policy"]["name"], evaluation["method"]
    missed = [check for check in evaluation["checks"] if is_missed(check, verdict)]
    which = "; ".join(f"“{check_title(check['name'])}”" for check in missed)
    tests = _tests_sentence(evaluation)
    if verdict == "PASSED":
        return (
            f"The audit passed: the model made by the method “{method}” met every bar of the policy “{policy}”, "
            "which was fixed before the run.",
            _comparison_sentence(evaluation),
            tests,
            "A passed audit is measured evidence that the images were forgotten, not proof that no trace is left; the "
            "last section says what is not covered.",
        )
    never = "A model with this verdict is never put into service; the policy says what is tried instead."
    if verdict == "FAILED":
        meanings = "; ".join(dict.fromkeys(MEANINGS.get(check["name"], "it missed a bar") for check in missed))
        return (
            f"The audit failed: the model made by the method “{method}” missed these bars of the policy “{policy}”, "
            f"which was fixed before the run: {which}.",
            never,
            tests,
            f"Failing does not mean that somebody can be recognised from the model. It means: {meanings}.",
        )
    counted = "; the table says how many models are needed" if any(c.get("models_needed") for c in missed) else ""
    return (
        f"The audit could not decide on the model made by the method “{method}”: these bars of the policy “{policy}” "
        f"are neither met nor missed: {which}.",
        never,
        tests,
        f"Undetermined is not passed: nothing is concluded about the model{counted}.",
    )


def _comparison_sentence(evaluation: Mapping[str, Any]) -> str:
    n, n_models = evaluation["n_examples"], evaluation["n_models"]
    images = "one image" if n == 1 else f"{n} images"
    if evaluation["method"] in EXACT:
        return (
            f"The model was trained from the start without the {images} concerned, and its answers on them were "
            f"compared with those of {n_models} other models trained without them."
        )
    return f"Its answers on the {images} concerned were compared with those of {n_models} models trained without them."


def _tests_sentence(evaluation: Mapping[str, Any]) -> str:
    found = list(telling_tests(evaluation))
    against = "models trained without the images"
    if not found:
        whom = "the audited model" if evaluation.get("n_unlearned") == 0 else "the audited model or the method's models"
        return f"No test in this report tells {whom} from {against}, at a level of {LEVEL:.0%} each."
    although = ", although every bar was met" if evaluation["verdict"] == "PASSED" else ""
    return (
        f"Tests in this report tell the audited model or the method's models from {against}{although}: "
        f"{'; '.join(found)}. A test at a level of {LEVEL:.0%} does so by chance in one of twenty audits of perfect "
        "forgetting."
    )


def telling_tests(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Name and figure of each reported test that tells the audited model or the method's models from retrained ones.

    A test tells them apart if its p-value is below 0.05, or below the policy's level where that is higher, or if its
    95 % interval excludes the value that equal models have.
    """
    yield from _tests_of_the_model(evaluation)
    if evaluation.get("detection"):
        yield from _tests_of_the_method(evaluation)
    for attack in filter(None, (evaluation.get("attack"), evaluation.get("quantile_attack"))):
        yield from _attacks(attack)
    for set_, words in SETS.items():
        if _excludes(ratio := evaluation[set_].get("ratio"), 1.0):
            yield f"mean accuracy on {words} ({_interval(ratio, 1.0)} times that of retrained models)"


def _level(evaluation: Mapping[str, Any], name: str) -> float:
    """Level at which the report speaks of a test that is a check too."""
    return max([LEVEL, *(float(check["bar"]) for check in evaluation["checks"] if check["name"] == name)])


def _tests_of_the_model(evaluation: Mapping[str, Any]) -> Iterator[str]:
    if gate := evaluation.get("gate"):
        yield from _tests_of_the_gate(gate, _level(evaluation, "gate"))
    looked = evaluation.get("looked") or {}
    if features := looked.get("features"):
        p, level = features["gate"]["p_adjusted"], _level(evaluation, "features")
        if p < level:
            yield f"features of the audited model (p = {beside(p, level)[0]})"
    if (exposed := looked.get("exposure")) and exposed["n_more_exposed"]:
        yield f"exposure of retained subjects ({exposed['n_more_exposed']} of {exposed['n_subjects']} more exposed)"
    p, level = evaluation["deployed"]["p_value"], _level(evaluation, "exchangeability")
    if p < level:
        yield f"exchangeability test of the audited model (p = {beside(p, level)[0]})"
    for set_, words in SETS.items():
        if (p := evaluation[set_]["deployed"]["p_value"]) <= LEVEL:
            yield f"accuracy of the audited model on {words} (p = {number(p)})"


def _tests_of_the_gate(gate: Mapping[str, Any], level: float) -> Iterator[str]:
    if (p := gate["p_adjusted"]) < level:
        yield f"gate of the audited model (p = {beside(p, level)[0]})"
    sides = {"upper": ("permutation_p", "alpha_upper"), "lower": ("permutation_p_over", "alpha_lower")}
    for side, (figure, share) in sides.items():
        if (p := gate[figure]) is not None and p < gate[share]:
            yield f"permutation test of the lowest margins, {side} side (p = {beside(p, gate[share])[0]})"
    ratio = gate["evidence_ratio"]
    if ratio and isinstance(ratio["high"], float) and ratio["high"] < 1:
        yield f"evidence ratio ({_interval(ratio, 1.0)})"


def _tests_of_the_method(evaluation: Mapping[str, Any]) -> Iterator[str]:
    detection, level = evaluation["detection"], _level(evaluation, "detection")
    if (p := detection["ks_combined_p"]) < level:
        yield f"Kolmogorov–Smirnov test of the forget set (p = {beside(p, level)[0]})"
    if (p := detection["energy_p"]) < LEVEL:
        yield f"energy test of the forget set (p = {beside(p, LEVEL)[0]})"
    if rejected := detection["n_rejected"]:
        share = f"{rejected} of {evaluation['n_examples']} at a false discovery rate of {detection['fdr']:.0%}"
        yield f"Kolmogorov–Smirnov tests of single images ({share})"
    if (bound := evaluation["bounds"]["simultaneous"]) > 0:
        yield f"lower bound on the largest ε ({number(bound)})"
    ratio = evaluation["forgetting"]["ratio"]
    if _excludes(ratio, 1.0) and ratio["high"] < 1:
        yield f"F / F_null ({_interval(ratio, 1.0)})"


def _attacks(attack: Mapping[str, Any]) -> Iterator[str]:
    title = f"membership inference attack, {attack['form']} form"
    for figure, over in (("auc", "single images"), ("auc_forget_set", "the forget set")):
        if _excludes(attack[figure], 0.5):
            yield f"{title}, over {over} (area {_interval(attack[figure], 0.5)})"
    rate = attack["tpr_at_fpr"]
    if _excludes(rate, 0.01) and rate["low"] > 0.01:
        yield f"{title}, at a false positive rate of 1 % (true positive rate {_interval(rate, 0.01)})"


def _excludes(interval: Mapping[str, Any] | None, value: float) -> TypeGuard[Mapping[str, Any]]:
    """Whether the interval is known and lies beside the value, by more than rounding."""
    if interval is None or interval["low"] is None or interval["high"] is None:
        return False
    return not interval["low"] - 1e-9 <= value <= interval["high"] + 1e-9


def _interval(interval: Mapping[str, Any], value: float) -> str:
    """An interval that excludes `value`, printed so that it still does."""
    low, high = (beside(interval[end], value)[0] for end in ("low", "high"))
    return f"{number(interval['value'])}, {low} to {high}"


def is_missed(check: Mapping[str, Any], verdict: str) -> bool:
    """Whether the check is a reason for the verdict."""
    if verdict == "FAILED":
        return check["passed"] is False
    return check["passed"] is None and bool(check.get("applicable", True))


def check_title(name: str) -> str:
    """Title of a check by its name."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def check_state(check: Mapping[str, Any]) -> tuple[str, str]:
    """Style class and word of a check's result."""
    if check["passed"] is None:
        return ("undetermined", "Undetermined") if check.get("applicable", True) else ("not-asked", "Not asked")
    return ("passed", "Met") if check["passed"] else ("failed", "Missed")


def check_value(check: Mapping[str, Any], field: str) -> str:
    """Measured value ("value") or bar ("bar") of a check, rounded so that the two compare as they do unrounded."""
    percent, whole = check["name"] in PERCENT, check["name"] == "bank_size"
    text = number(check[field], percent=percent, whole=whole)
    if not whole and all(_is_finite(check[each]) for each in ("value", "bar")):
        pair = (beside_percent if percent else beside)(check["value"], check["bar"])
        text = pair[field == "bar"].replace("-", "−") + (" %" if percent else "")
    if field == "bar" and not (check.get("applicable", True) or check["bar"]):  # a level of 0 is no bar
        return "–"
    if field == "value" or text == "–":
        return text
    return f"{'≤' if check['name'] in AT_MOST else '≥'} {text}"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def limits(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """What the report does not say; the limits of its own numbers first."""
    gate = evaluation.get("gate")
    own = (
        ()
        if gate is None
        else (
            f"The gate's false positive rate holds on average over banks of {gate['n_models']} references; a single "
            "bank has luck of its own. One model shows nothing of how much the method's runs differ.",
        )
    )
    if not (forgetting := evaluation.get("forgetting")):
        return own + LIMITS
    n = min(evaluation["n_models"], evaluation["n_unlearned"] or evaluation["n_models"])
    null = number(forgetting["null"]["value"], digits=2)
    return (
        *own,
        f"With {n} models a side, no measured ε can lie between {math.log(max(n - 1, 1)):.2f} and the cap of 50. The "
        "figures bound from below how well somebody could tell the models apart; they give no upper bound.",
        f"Forgetting quality F of perfect forgetting is itself below 1 (here {null}), because ε is the largest over "
        "many thousand rules. Only the ratio of F to this value is compared with a bar.",
        *LIMITS,
    )


def number(value: Any, *, digits: int = 3, percent: bool = False, whole: bool = False) -> str:
    """A figure for readers: a dash for what is absent, a true minus sign."""
    if value is None or isinstance(value, str):
        return {"inf": "∞", "-inf": "−∞"}.get(str(value), "–")
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{value * 100:.1f} %" if percent else f"{value:.0f}" if whole else f"{value:.{digits}f}"
    return text.replace("-", "−")
