"""The bars of a qualification on one probe subject, one function each.

Tested in `tests/audit/test_qualification.py`.
"""

from __future__ import annotations

import math

from audit import checks
from audit.checks import Check
from audit.figures import beside, beside_percent
from audit.statistics.intervals import Interval
from audit.statistics.runs import Rejected


def forgetting_check(ratio: Interval, n_models_a_side: int, bar: float) -> Check:
    """F / F_null over all runs together."""
    if math.isnan(ratio.value):
        sentence = f"F / F_null is undetermined with {n_models_a_side} models a side; draw more references and runs."
        return Check("forgetting_ratio", None, bar, None, sentence)
    return checks.forgetting_check(ratio, bar)


def views_check(smallest: float, n_views: int, bar: float) -> Check:
    """F / F_null in the worst view."""
    name, value = "view_ratio", smallest
    if math.isnan(value):
        sentence = "In some view of the images F / F_null is undetermined; draw more references and runs."
        return Check(name, None, bar, None, sentence)
    shown, bar_text = beside(value, bar, digits=2)
    sentence = (
        f"In the worst of {n_views} views of the images forgetting quality is {shown} times that of "
        f"perfect forgetting; the bar is {bar_text}."
    )
    return Check(name, value, bar, value >= bar, sentence)


def rejected_check(rejected: Rejected, bar: float) -> Check:
    """The share of the runs that the gate rejects."""
    name, share = "rejected_share", rejected.share
    if math.isnan(share.value):
        sentence = "The gate cannot judge the runs: all references have the same statistic."
        return Check(name, None, bar, None, sentence)
    _, bar_text = beside_percent(share.value, bar)
    sides = (
        (rejected.n_too_high, "as having forgotten too little"),
        (rejected.n_too_low, "as pushed too far"),
        (rejected.n_mean_rank, "by their mean rank"),
    )
    told = ", ".join(f"{n} {side}" for n, side in sides if n)
    interval = f"{100 * share.low:.0f} to {100 * share.high:.0f} %"
    sentence = (
        f"The gate rejects {rejected.n_rejected} of {rejected.n_runs} runs ({interval})"
        f"{f': {told}' if told else ''}; the bar is {bar_text} %."
    )
    return Check(name, share.value, bar, share.value <= bar, sentence)


def utility_check(set_: str, ratio: Interval, bar: float) -> Check:
    """Mean accuracy of the runs over that of the references, on the retain or the test set."""
    return checks.accuracy_check("Accuracy", set_, ratio, bar)


def cost_check(share: float, bar: float) -> Check:
    """Median seconds of a run over those of a training."""
    value, bar_text = beside_percent(share, bar)
    sentence = f"A run takes {value} % of a training's time; the bar is {bar_text} %."
    return Check("cost_share", share, bar, share <= bar, sentence)
