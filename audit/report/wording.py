"""The words of the report: verdicts, checks and limits for readers who know neither statistics nor machine learning."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from audit.proof.statement import LIMITS

VERDICT_WORDS = {"PASSED": "Passed", "FAILED": "Failed", "UNDETERMINED": "Undetermined"}

CHECK_TITLES = {
    "bank_size": "Enough models to compare with",
    "retain_ratio": "Accuracy on the people kept, by the method",
    "deployed_retain_ratio": "Accuracy on the people kept, audited model",
    "test_ratio": "Accuracy on people never seen, by the method",
    "deployed_test_ratio": "Accuracy on people never seen, audited model",
    "exchangeability": "Audited model not unusual among retrained ones",
    "forgetting_ratio": "Forgetting, beside perfect forgetting",
    "detection": "No difference detected on the images",
    "cost_share": "Cost, beside retraining",
    "reference_staleness": "People erased since the retrained models were made",
}
AT_MOST = ("cost_share", "reference_staleness")
PERCENT = ("cost_share", "reference_staleness")


def verdict_sentences(evaluation: Mapping[str, Any]) -> tuple[str, str, str]:
    """What the verdict means, in three sentences."""
    policy, method = evaluation["policy"]["name"], evaluation["method"]
    n, n_models = evaluation["n_examples"], evaluation["n_models"]
    images = "one image" if n == 1 else f"{n} images"
    missed = [check_title(check["name"]) for check in evaluation["checks"] if is_missed(check, evaluation["verdict"])]
    which = "; ".join(f"“{title}”" for title in missed)
    if evaluation["verdict"] == "PASSED":
        first = (
            f"The audit passed: the model made by the method “{method}” met every bar of the policy “{policy}”, "
            "which was fixed before the run."
        )
        second = (
            f"Its answers on the {images} concerned were compared with those of {n_models} models trained without "
            "them, and the tests below could not tell it from such a model; its use for everyone else stayed within "
            "the bars."
        )
        if evaluation.get("n_unlearned") == 0:
            second = (
                f"The model was trained from the beginning without the {images} concerned, and its answers on them are "
                f"no more unusual than those of {n_models} other models trained without them."
            )
        third = (
            "This is measured evidence that the images no longer influence the model’s answers in any way these tests "
            "can see; it is not proof that no trace is left, and the last section says what is not covered."
        )
        return first, second, third
    never = "A model with this verdict is never put into service; the policy says what is tried instead"
    if evaluation["verdict"] == "FAILED":
        return (
            f"The audit failed: the model made by the method “{method}” missed these bars of the policy “{policy}”, "
            f"which was fixed before the run: {which}.",
            f"{never}.",
            "Failing does not mean that the person can be recognised from the model; it means that the model answers "
            "on the images measurably unlike models that never saw them, or that it lost more of its use, or cost "
            "more, than the bars allow.",
        )
    return (
        f"The audit could not decide on the model made by the method “{method}”: with what was measured, these bars of "
        f"the policy “{policy}” can be neither met nor missed: {which}.",
        f"{never}.",
        "Undetermined is not passed: nothing is concluded about the model until enough was measured; the table says "
        "what would do.",
    )


def is_missed(check: Mapping[str, Any], verdict: str) -> bool:
    """Whether the check is a reason for the verdict."""
    if verdict == "FAILED":
        return check["passed"] is False
    return check["passed"] is None and bool(check.get("applicable", True))


def check_title(name: str) -> str:
    """Title of a check by its name."""
    return CHECK_TITLES.get(name, name.replace("_", " ").capitalize())


def check_state(check: Mapping[str, Any]) -> tuple[str, str]:
    """Style class and word of a check's result."""
    if check["passed"] is None:
        return ("undetermined", "Undetermined") if check.get("applicable", True) else ("not-asked", "Not asked")
    return ("passed", "Met") if check["passed"] else ("failed", "Missed")


def check_value(check: Mapping[str, Any], field: str) -> str:
    """Measured value or bar of a check."""
    text = number(check[field], percent=check["name"] in PERCENT, whole=check["name"] == "bank_size")
    if field == "value" or text == "–":
        return text
    return f"{'≤' if check['name'] in AT_MOST else '≥'} {text}"


def limits(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """What the report does not say, the limits of these numbers first."""
    n = min(evaluation["n_models"], evaluation.get("n_unlearned") or evaluation["n_models"])
    own = (
        f"With {n} models a side, no measured ε can lie between {math.log(max(n - 1, 1)):.2f} and the cap of 50: the "
        "figures give lower bounds of how well someone could tell the models apart, never upper ones.",
        "Forgetting quality is never near 1: perfect forgetting itself scores low, since ε is the largest over many "
        "thousand rules. Only its ratio to what perfect forgetting scores is compared with a bar.",
    )
    return own + LIMITS


def number(value: Any, *, digits: int = 3, percent: bool = False, whole: bool = False) -> str:
    """A figure for people: a dash for what is not there, a true minus sign."""
    if value is None or isinstance(value, str):
        return {"inf": "∞", "-inf": "−∞"}.get(str(value), "–")
    if not math.isfinite(value):
        return "–" if math.isnan(value) else ("∞" if value > 0 else "−∞")
    text = f"{value * 100:.1f} %" if percent else f"{value:.0f}" if whole else f"{value:.{digits}f}"
    return text.replace("-", "−")
