"""The report's text agrees with its numbers, for evaluations that hypothesis makes up."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.checks import all_checks, verdict_of
from audit.evaluation import Evaluation, Evidence, evaluate
from audit.policy import EXACT, Policy
from audit.report import wording
from audit.report.page import check_row
from audit.staleness import Staleness
from audit.statistics.exchangeability import Exchangeability
from audit.statistics.exposure import Exposure
from audit.statistics.features import LOWER_SHARE as FEATURES_LOWER
from audit.statistics.features import UPPER_SHARE as FEATURES_UPPER
from audit.statistics.features import features_gate
from audit.statistics.gate import LOWER_SHARE, RANK_SHARE, UPPER_SHARE, EvidenceRatio, Gate, gate
from audit.statistics.intervals import Interval
from audit.statistics.looks import CandidateFeatures, Looked
from audit.statistics.utility import Deployed, Utility
from tests.audit.policies import WITH_RUNS


@cache
def measured(exact: bool) -> Evaluation:
    """An evaluation of 8 models a bank and 3 images, whose figures the tests below exchange."""
    rng = np.random.default_rng(0)
    accuracies = np.full(8, 0.9)
    evidence = Evidence(
        retrained=rng.normal(size=(8, 3)),
        unlearned=None if exact else rng.normal(size=(8, 3)),
        deployed=rng.normal(size=3),
        original=rng.normal(size=3),
        retain_accuracy_retrained=accuracies,
        retain_accuracy_unlearned=None if exact else accuracies,
        retain_accuracy_deployed=0.9,
        retain_accuracy_original=0.9,
        test_accuracy_retrained=accuracies,
        test_accuracy_unlearned=None if exact else accuracies,
        test_accuracy_deployed=0.9,
        test_accuracy_original=0.9,
        cost_share=None if exact else 0.1,
        exact=exact,
    )
    return evaluate(evidence, WITH_RUNS, rung=2 if exact else 0, seed=0)


@pytest.mark.parametrize("method", [*EXACT, "remix"])
def test_only_what_was_trained_without_the_images_is_said_to_be(method: str) -> None:
    """A method that was qualified ahead has no bank of runs either, and began from the model in service."""
    rng = np.random.default_rng(0)
    exact = method in EXACT
    policy = replace(WITH_RUNS, ladder=tuple(dict.fromkeys((method, "retrain"))), qualification=True, gate_alpha=0.05)
    evidence = replace(
        measured(True).evidence, exact=exact, cost_share=None if exact else 0.1, qualification="It passed on 8 of 8.",
        deployed=rng.normal(size=3),
    )  # fmt: skip
    evaluation = {**evaluate(evidence, policy, rung=0, seed=0).to_dict(), "verdict": "PASSED"}
    said = " ".join(wording.verdict_sentences(evaluation))
    assert ("trained from the start without" in said) == exact
    assert "3 images concerned were compared with those of 8 models" in said or exact


def near(*bars: float) -> st.SearchStrategy[float]:
    """Numbers in [0, 2], many of them at a bar or so near to it that rounding would move them across."""
    at = st.sampled_from(bars)
    beside = st.builds(lambda bar, gap: max(0.0, bar + gap), at, st.floats(-0.004, 0.004))
    neighbours = at.map(lambda bar: math.nextafter(bar, 0)) | at.map(lambda bar: math.nextafter(bar, 2))
    return at | beside | neighbours | st.floats(0, 2)


def p_values(*bars: float) -> st.SearchStrategy[float]:
    return near(0.05, *bars).map(lambda p: min(p, 1.0))


def intervals(*bars: float) -> st.SearchStrategy[Interval]:
    return st.lists(near(*bars), min_size=3, max_size=3).map(sorted).map(lambda v: Interval(v[1], v[0], v[2]))


UNKNOWN = Interval(math.nan, math.nan, math.nan)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    return replace(
        WITH_RUNS,
        n_models=draw(st.sampled_from([8, 64])),
        retain_ratio_min=draw(st.sampled_from([0.97, 0.9755, 0.3333])),
        exchangeability_alpha=draw(st.sampled_from([0.0, 0.01, 0.05, 0.125])),
        forgetting_ratio_min=draw(st.sampled_from([0.5, 0.805])),
        detection_alpha=draw(st.sampled_from([0.0, 0.01, 0.1])),
        cost_share_max=draw(st.sampled_from([0.2, 0.125])),
        staleness_max=draw(st.sampled_from([0.0, 0.05, 0.025])),
        gate_alpha=draw(st.sampled_from([0.0, 0.05, 0.125])),
        features_alpha=draw(st.sampled_from([0.0, 0.01, 0.05, 0.125])),
        ladder=("remix", "dilute", "random_mask", "retrain"),
    )


@st.composite
def utilities(draw: st.DrawFn, *, exact: bool) -> Utility:
    one = Deployed(draw(st.floats(0, 1)), draw(intervals(0.97, 0.9755, 1.0) | st.just(UNKNOWN)), draw(p_values()))
    ratio = None if exact else draw(intervals(0.97, 0.9755, 1.0) | st.just(UNKNOWN))
    return Utility(Interval(0.9, 0.8, 1.0), None if exact else Interval(0.9, 0.8, 1.0), ratio, one, one)


RNG = np.random.default_rng(0)
REFERENCES = RNG.normal(size=(40, 2, 6))


@st.composite
def gates(draw: st.DrawFn, level: float) -> Gate:
    """A gate's finding with any p-values and any power: the text is checked against them."""
    known = draw(st.booleans())
    found = gate(REFERENCES[0], REFERENCES[1:], originals=REFERENCES[:9] + 3 if known else None, alpha=level or 0.05)
    p_value, p_over, rank_p = draw(p_values(level * 0.7)), draw(p_values(level * 0.2)), draw(p_values(level * 0.1))
    p_adjusted = min(1.0, p_value / UPPER_SHARE, p_over / LOWER_SHARE, rank_p / RANK_SHARE)
    many = draw(st.booleans())
    drawn: dict[str, Any] = {
        "permutation_p": draw(p_values(found.alpha_upper)) if many else None,
        "permutation_p_over": draw(p_values(found.alpha_lower)) if many else None,
    }
    if known:
        low, value, high = sorted(draw(near(0.5, 1.0)) for _ in range(3))
        drawn["evidence_ratio"] = EvidenceRatio(value, low, high)
        drawn["learned"], drawn["power"] = draw(intervals(0.0, 2.0)), draw(st.floats(0, 1))
    return replace(
        found, p_value=p_value, p_over=p_over, mean_rank_p=rank_p, p_adjusted=p_adjusted,
        passed=p_adjusted >= found.alpha, **drawn,
    )  # fmt: skip


@st.composite
def lookeds(draw: st.DrawFn, level: float) -> Looked:
    """What features and retained subjects say, with any p-values; each may not have been asked."""
    features = exposure = None
    if draw(st.booleans()):
        found = features_gate(REFERENCES[0], REFERENCES[1:], REFERENCES[:9], alpha=level or 0.05)
        p_value, p_over = draw(p_values(level * FEATURES_UPPER)), draw(p_values(level * FEATURES_LOWER))
        p_adjusted = min(1.0, p_value / FEATURES_UPPER, p_over / FEATURES_LOWER)
        found = replace(found, p_value=p_value, p_over=p_over, p_adjusted=p_adjusted, passed=p_adjusted >= found.alpha)
        features = CandidateFeatures(found, draw(st.integers(0, found.n_originals)))
    if draw(st.booleans()):
        smallest = draw(p_values())
        n_more = draw(st.integers(1, 30)) if smallest <= 0.05 else 0
        exposure = Exposure(n_more, draw(st.floats(-3, 9)), smallest, draw(st.floats(-3, 3)), 30, 0.05)
    return Looked(features, exposure, "" if features else "features are old", "" if exposure else "margins are old")


@st.composite
def evaluations(draw: st.DrawFn) -> dict[str, Any]:
    policy = draw(policies())
    rung = draw(st.integers(0, 3))
    exact = policy.is_exact(rung)
    n_models = draw(st.sampled_from([8, 64, 400]))
    base = measured(exact)
    level = policy.level_at(rung, policy.exchangeability_alpha)
    staleness = Staleness(*draw(st.sampled_from([(0, 0, 0, 0), (40, 1, 10, 0), (1000, 51, 10, 0), (40, 0, 20, 1)])))
    parts: dict[str, Any] = {
        "deployed": Exchangeability(draw(p_values(level)), 0.5, np.full(n_models, 0.5), n_models),
        "retain": draw(utilities(exact=exact)),
        "test": draw(utilities(exact=exact)),
        "forgetting": None,
        "detection": None,
        "staleness": staleness,
        "cost_share": None if exact else draw(near(policy.cost_share_max)),
        "gate": draw(st.none() | gates(policy.level_at(rung, policy.gate_alpha))),
        "looked": draw(lookeds(policy.level_at(rung, policy.features_alpha))),
    }
    others: dict[str, Any] = {}
    if base.forgetting and base.detection and base.bounds and base.attack and base.quantile_attack:
        ratio = draw(intervals(policy.forgetting_ratio_min, 1.0) | st.just(UNKNOWN))
        parts["forgetting"] = replace(base.forgetting, ratio=ratio)
        parts["detection"] = replace(
            base.detection,
            ks_combined_p=draw(p_values(policy.detection_alpha)),
            energy_p=draw(p_values()),
            n_rejected=draw(st.integers(0, 3)),
        )
        others["bounds"] = replace(base.bounds, simultaneous=draw(st.just(0.0) | st.floats(0, 4)))
        for name in ("attack", "quantile_attack"):
            figures = {"auc": draw(intervals(0.5)), "auc_forget_set": draw(intervals(0.5))}
            others[name] = replace(getattr(base, name), tpr_at_fpr=draw(intervals(0.01)), **figures)
    n_unlearned = 0 if exact else n_models
    checks = all_checks(policy, rung=rung, n_retrained=n_models, n_unlearned=n_unlearned or None, **parts)
    evaluation = replace(
        base, verdict=verdict_of(checks), checks=checks, policy=policy, rung=rung, method=policy.method_at(rung),
        n_models=n_models, n_unlearned=n_unlearned, **parts, **others,
    )  # fmt: skip
    return evaluation.to_dict()


NUMBER = r"(\d+(?:\.\d+)?)"
Tells = Callable[[dict[str, Any]], bool]


def excludes(value: float) -> Callable[[dict[str, Any] | None], bool]:
    return lambda i: i is not None and i["low"] is not None and not i["low"] - 1e-9 <= value <= i["high"] + 1e-9


def attack_tells(name: str) -> dict[str, Tells]:
    form = {"attack": "gaussian", "quantile_attack": "quantile"}[name]
    title = f"membership inference attack, {form} form"
    return {
        f"{title}, over single images": lambda e: excludes(0.5)(e[name]["auc"]),
        f"{title}, over the forget set": lambda e: excludes(0.5)(e[name]["auc_forget_set"]),
        f"{title}, at a false positive rate of 1 %": lambda e: e[name]["tpr_at_fpr"]["low"] > 0.01 + 1e-9,
    }


MODEL_TESTS: dict[str, Tells] = {
    "exchangeability test of the audited model": lambda e: e["deployed"]["p_value"] < max(0.05, bar(e)),
    "gate of the audited model": lambda e: (
        e["gate"] is not None and e["gate"]["p_adjusted"] < max(0.05, bar(e, "gate"))
    ),
    "permutation test of the lowest margins, upper side": lambda e: (
        e["gate"] is not None and (p := e["gate"]["permutation_p"]) is not None and p < e["gate"]["alpha_upper"]
    ),
    "permutation test of the lowest margins, lower side": lambda e: (
        e["gate"] is not None and (p := e["gate"]["permutation_p_over"]) is not None and p < e["gate"]["alpha_lower"]
    ),
    "evidence ratio": lambda e: (
        e["gate"] is not None and (ratio := e["gate"]["evidence_ratio"]) is not None and ratio["high"] < 1
    ),
    "features of the audited model": lambda e: (
        (found := e["looked"]["features"]) is not None and found["gate"]["p_adjusted"] < max(0.05, bar(e, "features"))
    ),
    "exposure of retained subjects": lambda e: (
        (found := e["looked"]["exposure"]) is not None and found["smallest_adjusted_p"] <= 0.05
    ),
    "accuracy of the audited model on the retain set": lambda e: e["retain"]["deployed"]["p_value"] <= 0.05,
    "accuracy of the audited model on held-out subjects": lambda e: e["test"]["deployed"]["p_value"] <= 0.05,
}
METHOD_TESTS: dict[str, Tells] = {
    "Kolmogorov–Smirnov test of the forget set": lambda e: (
        e["detection"]["ks_combined_p"] < max(0.05, e["policy"]["detection_alpha"])
    ),
    "energy test of the forget set": lambda e: e["detection"]["energy_p"] < 0.05,
    "Kolmogorov–Smirnov tests of single images": lambda e: e["detection"]["n_rejected"] > 0,
    "lower bound on the largest ε": lambda e: e["bounds"]["simultaneous"] > 0,
    "F / F_null": lambda e: (high := e["forgetting"]["ratio"]["high"]) is not None and high < 1 - 1e-9,
    **attack_tells("attack"),
    **attack_tells("quantile_attack"),
    "mean accuracy on the retain set": lambda e: excludes(1)(e["retain"]["ratio"]),
    "mean accuracy on held-out subjects": lambda e: excludes(1)(e["test"]["ratio"]),
}


def bar(evaluation: dict[str, Any], name: str = "exchangeability") -> float:
    return next(float(check["bar"]) for check in evaluation["checks"] if check["name"] == name)


@settings(max_examples=60, deadline=None)
@given(evaluations())
def test_the_verdict_s_text_names_the_tests_that_tell_model_or_method_from_retraining_and_no_others(evaluation):
    tests = MODEL_TESTS | (METHOD_TESTS if evaluation["n_unlearned"] else {})
    telling = {name for name, tells in tests.items() if tells(evaluation)}
    text = " ".join(wording.verdict_sentences(evaluation))
    assert {name for name in MODEL_TESTS | METHOD_TESTS if f"{name} (" in text} == telling
    assert ("No test in this report" in text) == (not telling)
    assert "could not tell" not in text


@settings(max_examples=60, deadline=None)
@given(evaluations())
def test_the_verdict_s_text_is_of_the_verdict_and_names_what_was_missed(evaluation):
    sentences = wording.verdict_sentences(evaluation)
    opening = {"PASSED": "The audit passed", "FAILED": "The audit failed", "UNDETERMINED": "The audit could not decide"}
    assert sentences[0].startswith(opening[evaluation["verdict"]])
    wanted = {"PASSED": "met", "FAILED": "failed", "UNDETERMINED": "undetermined"}[evaluation["verdict"]]
    states = {wording.check_title(check["name"]): wording.check_state(check)[0] for check in evaluation["checks"]}
    named = set(re.findall(r"“([^”]+)”", sentences[0])) - {evaluation["method"], evaluation["policy"]["name"]}
    assert named == {title for title, state in states.items() if state == wanted}
    failed = {check["name"] for check in evaluation["checks"] if check["passed"] is False}
    if evaluation["verdict"] == "FAILED":
        last = sentences[-1]
        assert ("accuracy" in last) == bool(failed & {"retain_ratio", "test_ratio", "deployed_retain_ratio",
                                                      "deployed_test_ratio"})  # fmt: skip
        assert ("cost" in last) == ("cost_share" in failed)
        assert ("erased since" in last) == ("reference_staleness" in failed)
        assert ("unusual" in last) == bool(failed & {"exchangeability", "gate"})
        assert ("views" in last) == ("gate" in failed)
        assert ("penultimate features" in last) == ("features" in failed)
    needed = any(c["models_needed"] for c in evaluation["checks"] if c["passed"] is None and c["applicable"])
    if evaluation["verdict"] == "UNDETERMINED":
        assert ("how many models" in sentences[-1]) == needed


def plain(text: str) -> float:
    """The number in a cell of the table, percentages as shares."""
    number = float(re.sub(r"[^0-9.]", "", text))
    return number / 100 if "%" in text else number


@settings(max_examples=60, deadline=None)
@given(evaluations())
def test_every_row_of_the_checks_says_met_or_missed_as_its_printed_figures_do(evaluation):
    for check in evaluation["checks"]:
        row = check_row(check)
        if check["passed"] is None or row["value"] == "–":
            assert "≥ 0.000" not in row["bar"]
            continue
        value, printed_bar = plain(row["value"]), plain(row["bar"])
        within = value <= printed_bar + 1e-12 if row["bar"].startswith("≤") else value >= printed_bar - 1e-12
        excused = check["name"].startswith("deployed_") and "no worse than" in check["sentence"]
        assert (row["word"] == "Met") == (within or excused), row
        assert not (excused and within), row


@settings(max_examples=60, deadline=None)
@given(evaluations())
def test_every_sentence_of_a_check_agrees_with_the_figures_it_prints(evaluation):
    for check in evaluation["checks"]:
        sentence, name = check["sentence"], check["name"]
        if found := re.search(rf"\(p = {NUMBER}, bar {NUMBER}\)", sentence):
            p, level = float(found[1]), float(found[2])
            assert (p < level) == (check["passed"] is False), sentence
            assert (" not " in sentence) == (p >= level), sentence
        if "no bar is set" in sentence:
            assert (check["applicable"], check["bar"]) == (False, 0)
        if found := re.search(rf"is {NUMBER} times .*the bar is {NUMBER}", sentence):
            assert (float(found[1]) >= float(found[2])) == (check["passed"] is True), sentence
        if found := re.search(rf"{NUMBER}%.*at most {NUMBER}% is allowed", sentence, re.IGNORECASE):
            shares = [float(share) for share in re.findall(rf"{NUMBER}%", sentence)]
            assert (max(shares[:-1]) <= shares[-1]) == check["passed"], sentence
        if found := re.search(rf"below the bar of {NUMBER}", sentence):
            ratio, p = (float(re.search(f"{before}{NUMBER}", sentence)[1]) for before in ("is ", "p = "))
            assert ratio < float(found[1]), sentence
            assert (p > 0.05) == check["passed"] == ("no worse" in sentence), sentence
        assert bool(check["models_needed"]) <= (name in ("bank_size", "exchangeability", "forgetting_ratio"))


@settings(max_examples=60, deadline=None)
@given(evaluations())
def test_features_and_retained_subjects_are_told_of_as_they_were_found_or_with_the_reason_why_not(evaluation):
    said = {check["name"]: check for check in evaluation["checks"]}
    features, exposure = (evaluation["looked"][name] for name in ("features", "exposure"))
    sentence = said["features"]["sentence"]
    if features is None:
        assert sentence == "The penultimate features cannot be compared: features are old."
        assert said["features"]["passed"] is None
        assert said["features"]["applicable"] == (said["features"]["bar"] > 0)  # a bar makes it undetermined
    else:
        told = re.search(rf"At a level of {NUMBER} it rejects (\d+) of (\d+) models trained with them", sentence)
        assert told is not None
        assert float(told[1]) == pytest.approx(features["gate"]["alpha"])
        assert (int(told[2]), int(told[3])) == (features["n_originals_told_apart"], features["gate"]["n_originals"])
        printed = float(re.search(rf"p = {NUMBER}", sentence)[1])
        assert (printed < features["gate"]["alpha"]) == (not features["gate"]["passed"])
    sentence = said["exposure"]["sentence"]
    if exposure is None:
        assert sentence == "Whether retained subjects became more exposed cannot be told: margins are old."
    else:
        found = re.search(rf"Of 30 retained subjects (none is|(\d+) (?:is|are)) more exposed .*p = {NUMBER}", sentence)
        assert int(found[2] or 0) == exposure["n_more_exposed"]
        assert (float(found[3]) <= 0.05) == (exposure["n_more_exposed"] > 0)
    assert not said["exposure"]["applicable"]


@pytest.mark.parametrize("exact", [False, True])
def test_the_limits_speak_of_figures_only_where_they_were_measured(exact: bool) -> None:
    text = " ".join(wording.limits(measured(exact).to_dict()))
    assert ("ε" in text) == (not exact)
    assert ("Forgetting quality" in text) == (not exact)


@settings(max_examples=60, deadline=None)
@given(evaluations())
def test_a_report_begins_with_how_much_was_learned_and_says_nothing_else_than_its_figures(evaluation):
    text = " ".join(wording.learned_sentences(evaluation))
    if (found := evaluation["gate"]) is None:
        assert not text
    elif found["learned"] is None:
        assert "is not known" in text
        assert not re.search(r"\d", text)
    else:
        said = [float(figure) for figure in re.findall(r"(\d+\.\d+)", text.replace("−", ""))]
        learned = [abs(found["learned"][end]) for end in ("value", "low", "high")]
        assert said == pytest.approx([*learned, found["power"]], abs=0.0501)
        assert ("That is little" in text) == (found["learned"]["value"] < 2)
