import math
from dataclasses import replace

import numpy as np
import pytest

from audit import PRESETS, Check
from audit.checks import all_checks, verdict_of
from audit.staleness import Staleness
from audit.statistics.distances import detect
from audit.statistics.exchangeability import Exchangeability
from audit.statistics.forgetting import ForgettingRatio
from audit.statistics.gate import Gate, gate
from audit.statistics.intervals import Interval
from audit.statistics.utility import Deployed, Utility, utility
from tests.audit.policies import WITH_RUNS

POLICY, STANDARD = WITH_RUNS, PRESETS["standard"]


def _forgetting(value: float) -> ForgettingRatio:
    interval = Interval(value, value * 0.9, value * 1.1)
    return ForgettingRatio(*[interval] * 6, 32, 10, np.zeros(20), np.zeros(10))


def _checks(
    *, policy=POLICY, rung=0, ratio=1.0, deployed_ratio=1.0, p=0.4, forgetting=1.0, cost=0.1, n=64, exact=False,
    runs=True, gate=None, qualification=None,
):  # fmt: skip
    rng = np.random.default_rng(0)
    bank = np.clip(rng.normal(0.9, 0.005, n), 0, 1)
    runs = runs and not exact
    figures = utility(bank, bank * ratio if runs else None, float(bank.mean() * deployed_ratio), 0.9, seed=0)
    checks = all_checks(
        policy,
        rung=rung,
        n_retrained=n,
        n_unlearned=n if runs else None,
        retain=figures,
        test=figures,
        deployed=Exchangeability(p, 0.5, np.full(n, 0.5), n),
        forgetting=_forgetting(forgetting) if runs else None,
        detection=None,
        cost_share=None if exact else cost,
        gate=gate,
        qualification=qualification,
    )
    return {check.name: check for check in checks}


def _verdict(**changes) -> str:
    return verdict_of(_checks(**changes).values())


def test_a_good_candidate_passes():
    assert _verdict() == "PASSED"


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({"ratio": 0.96}, {"retain_ratio", "test_ratio"}),
        ({"deployed_ratio": 0.96}, {"deployed_retain_ratio", "deployed_test_ratio"}),
        ({"p": 0.04}, {"exchangeability"}),
        ({"forgetting": 0.49}, {"forgetting_ratio"}),
        ({"cost": 0.21}, {"cost_share"}),
    ],
)
def test_each_bar_fails_alone(changes, failed):
    checks = _checks(**changes)
    assert {name for name, check in checks.items() if check.passed is False} == failed
    assert verdict_of(checks.values()) == "FAILED"


@pytest.mark.parametrize(
    "changes", [{"ratio": 0.9701}, {"deployed_ratio": 0.9701}, {"p": 0.05}, {"forgetting": 0.5}, {"cost": 0.2}]
)
def test_meeting_a_bar_is_passing_it(changes):
    assert _verdict(**changes) == "PASSED"


def test_too_few_models_leave_it_undetermined_and_say_how_many_would_do():
    checks = _checks(n=30)
    assert verdict_of(checks.values()) == "UNDETERMINED"
    assert checks["bank_size"].models_needed == 64
    assert checks["exchangeability"].passed is None
    assert checks["exchangeability"].models_needed == 39
    assert "39" in checks["exchangeability"].sentence


def test_a_failed_bar_outweighs_an_undetermined_one():
    assert _verdict(n=30, forgetting=0.1) == "FAILED"


def test_an_undetermined_ratio_is_no_pass():
    checks = _checks(forgetting=float("nan"))
    assert (checks["forgetting_ratio"].passed, checks["forgetting_ratio"].bar) == (None, 0.5)
    assert verdict_of(checks.values()) == "UNDETERMINED"


def test_exact_retraining_is_asked_only_what_applies():
    checks = _checks(exact=True, rung=2)
    assert {name for name, check in checks.items() if not check.applicable} == {
        "retain_ratio",
        "test_ratio",
        "features",
        "exposure",
        "forgetting_ratio",
        "detection",
        "cost_share",
        "gate",
        "qualification",
    }
    assert all(check.passed is None for check in checks.values() if not check.applicable)
    for check in checks.values():
        assert check.bar is not None or check.name == "qualification"  # which has, or has not, been shown
        if check.applicable is not True:
            assert (check.applicable, check.value) == (False, None)
            assert check.sentence
    assert verdict_of(checks.values()) == "PASSED"
    assert _verdict(exact=True, rung=2, p=0.01) == "FAILED"


def _gate(shift: float, alpha: float = 0.05) -> Gate:
    """The gate's finding on a candidate that lies so many standard deviations above its eight references."""
    rng = np.random.default_rng(3)
    references = np.linspace(-1.5, 1.5, 8)[:, None, None] + rng.normal(scale=0.1, size=(8, 10, 6))
    return gate(references.mean(axis=0) + shift, references, originals=references + 6, alpha=alpha)


def test_the_gate_and_a_qualification_stand_in_for_a_bank_of_runs():
    said = {"policy": STANDARD, "n": 8, "runs": False}
    passed = _checks(**said, gate=_gate(0.0), qualification="All 8 of 8 probes passed.")
    assert verdict_of(passed.values()) == "PASSED"
    assert {name for name, check in passed.items() if not check.applicable} == {
        "retain_ratio", "test_ratio", "forgetting_ratio", "detection", "features", "exposure", "exchangeability",
    }  # fmt: skip
    assert passed["qualification"].sentence == "All 8 of 8 probes passed."
    assert _verdict(**said, gate=_gate(6.0), qualification="q") == "FAILED"
    assert _verdict(**said, gate=_gate(-9.0), qualification="q") == "FAILED"
    assert _verdict(**said, gate=_gate(0.0)) == "UNDETERMINED"  # not qualified, and no bank of runs
    assert _verdict(**said, qualification="q") == "UNDETERMINED"  # no margins of views
    exact = _checks(policy=STANDARD, n=8, exact=True, rung=2, gate=_gate(0.0))
    assert (exact["qualification"].applicable, verdict_of(exact.values())) == (False, "PASSED")


def test_the_gate_s_sentence_says_which_way_a_model_is_unusual():
    high, low = (_checks(policy=STANDARD, n=8, runs=False, gate=_gate(shift))["gate"] for shift in (6.0, -9.0))
    assert "forgot too little" in high.sentence
    assert "pushed too far" in low.sentence
    assert high.value < high.bar == 0.05
    reported = _checks(gate=_gate(6.0))["gate"]  # a policy without a bar
    assert (reported.applicable, reported.passed) == (False, None)
    assert "no bar is set" in reported.sentence


def test_later_candidates_need_a_higher_p():
    assert _verdict(p=0.07, rung=0) == "PASSED"
    assert _verdict(p=0.07, rung=1) == "FAILED"
    assert _verdict(p=0.07, rung=2, exact=True) == "PASSED"


def test_one_unlucky_model_may_be_as_bad_as_references_are():
    rng = np.random.default_rng(1)
    bank = np.clip(rng.normal(0.9, 0.04, 64), 0, 1)  # a small test set: references scatter
    figures = utility(bank, bank, float(bank.mean() * 0.95), 0.9, seed=0)
    arguments = {
        "rung": 0,
        "n_retrained": 64,
        "n_unlearned": 64,
        "retain": figures,
        "deployed": Exchangeability(0.5, 0.5, np.full(64, 0.5), 64),
        "forgetting": _forgetting(1.0),
        "detection": None,
        "cost_share": 0.1,
    }
    assert verdict_of(all_checks(POLICY, test=figures, **arguments)) == "PASSED"
    worse = utility(bank, bank, float(bank.min() - 0.01), 0.9, seed=0)
    assert verdict_of(all_checks(POLICY, test=worse, **arguments)) == "FAILED"


def test_a_level_of_zero_reports_without_a_bar():
    checks = _checks(policy=replace(POLICY, exchangeability_alpha=0.0), p=0.001)
    assert not checks["exchangeability"].applicable
    assert checks["exchangeability"].value == 0.001
    assert verdict_of(checks.values()) == "PASSED"


def _judged(name: str, policy=POLICY, *, rung=0, n_retrained=64, n_unlearned=64, ratio=1.0, deployed=1.0, spare=0.5,
            n=64, detected=0.4, cost=0.1, gone=0):  # fmt: skip
    """One check of figures given outright: an accuracy ratio, the deployed model's ratio and p-value, and so on."""
    one = Deployed(0.9, Interval(deployed, 0.9, 1.1), spare)
    figures = Utility(Interval(0.9, 0.8, 1.0), Interval(0.9, 0.8, 1.0), Interval(ratio, 0.9, 1.1), one, one)
    detection = replace(DETECTION, ks_combined_p=detected)
    checks = all_checks(
        policy, rung=rung, n_retrained=n_retrained, n_unlearned=n_unlearned, retain=figures, test=figures,
        deployed=Exchangeability(0.5, 0.5, np.full(n, 0.5), n), forgetting=_forgetting(1.0), detection=detection,
        cost_share=cost, staleness=Staleness(100, gone),
    )  # fmt: skip
    (found,) = (check for check in checks if check.name == name)
    return found


DETECTION = detect(np.random.default_rng(0).normal(size=(4, 1)), np.arange(4.0)[:, None], seed=0, n_permutations=19)
LOWER, HIGHER = math.nextafter(0.97, 0), math.nextafter(0.05, 1)


@pytest.mark.parametrize(
    ("name", "at_the_bar", "beyond"),
    [
        ("retain_ratio", {"ratio": 0.97}, {"ratio": LOWER}),
        ("test_ratio", {"ratio": 0.97}, {"ratio": LOWER}),
        ("deployed_retain_ratio", {"deployed": 0.97, "spare": 0.0}, {"deployed": LOWER, "spare": 0.0}),
        ("deployed_test_ratio", {"deployed": 0.5, "spare": HIGHER}, {"deployed": 0.5, "spare": 0.05}),
        ("cost_share", {"cost": 0.2}, {"cost": math.nextafter(0.2, 1)}),
        ("reference_staleness", {"gone": 5}, {"gone": 6}),
    ],
)
def test_a_figure_at_its_bar_passes_and_the_next_number_beyond_does_not(name, at_the_bar, beyond):
    assert _judged(name, **at_the_bar).passed is True
    assert _judged(name, **beyond).passed is False


def test_each_bar_is_its_own():
    policy = replace(POLICY, retain_ratio_min=0.9, test_ratio_min=0.8, staleness_max=0.3, cost_share_max=0.1)
    bars = {
        "retain_ratio": 0.9, "test_ratio": 0.8, "deployed_retain_ratio": 0.9, "deployed_test_ratio": 0.8,
        "exchangeability": 0.05, "forgetting_ratio": 0.5, "cost_share": 0.1, "reference_staleness": 0.3,
        "bank_size": 64,
    }  # fmt: skip
    assert {name: _judged(name, policy).bar for name in bars} == bars


def test_the_smaller_bank_decides_whether_there_are_enough_models():
    assert _judged("bank_size").passed is True
    for sizes in ({"n_retrained": 63}, {"n_unlearned": 63}):
        check = _judged("bank_size", **sizes)
        assert (check.value, check.passed, check.models_needed) == (63, None, 64)
    assert _judged("bank_size", n_unlearned=None).value == 64  # exact retraining has no bank of its own
    assert _judged("exchangeability", n=39).passed is True  # as many as a test at 5 % needs
    assert _judged("exchangeability", n=38).passed is None


def test_the_combined_test_has_a_level_of_its_own():
    strict = replace(POLICY, detection_alpha=0.01)
    at, below = _judged("detection", strict, detected=0.01), _judged("detection", strict, detected=0.0099)
    assert (at.passed, below.passed, at.bar, at.applicable) == (True, False, 0.01, True)
    assert "does not tell" in at.sentence
    assert "tells unlearned" in below.sentence
    reported = _judged("detection", detected=0.001)
    assert (reported.passed, reported.applicable, reported.value) == (None, False, 0.001)
    assert "no bar is set" in reported.sentence


def test_the_sentence_says_what_the_verdict_does():
    mean = _judged("retain_ratio", ratio=0.951).sentence
    assert mean == (
        "The mean accuracy of the method's models on the retain set is 0.951 times that of retrained models "
        "(0.900 to 1.100); the bar is 0.97."
    )
    assert _judged("test_ratio", ratio=float("nan")).sentence == (
        "Retrained models have an accuracy of 0 on held-out subjects."
    )
    assert "is not unusual" in _checks(p=0.05)["exchangeability"].sentence
    assert "is unusual" in _checks(p=0.049)["exchangeability"].sentence
    assert "worse than single retrained" in _judged("deployed_test_ratio", deployed=0.5, spare=0.05).sentence
    assert "no worse than single retrained" in _judged("deployed_test_ratio", deployed=0.5, spare=0.06).sentence
    assert "worse" not in _judged("deployed_test_ratio", deployed=0.97, spare=0.01).sentence


@pytest.mark.parametrize("name", ["retain_ratio", "test_ratio", "deployed_retain_ratio", "deployed_test_ratio"])
def test_a_ratio_to_nothing_is_no_pass(name):
    check = _judged(name, ratio=float("nan"), deployed=float("nan"))
    assert (check.passed, check.applicable, check.value) == (None, True, None)
    assert verdict_of([check]) == "UNDETERMINED"


def test_verdicts():
    passed, failed, open_, not_asked = (
        Check("x", 1.0, 1.0, result, "", applicable=applicable)
        for result, applicable in ((True, True), (False, True), (None, True), (None, False))
    )
    assert verdict_of([passed, not_asked]) == "PASSED"
    assert verdict_of([passed, open_]) == "UNDETERMINED"
    assert verdict_of([open_, failed]) == "FAILED"
    assert verdict_of([]) == "PASSED"


def test_a_failed_bar_fails_whoever_compared_it():
    """A figure that is NumPy's makes a comparison that is NumPy's, and its False is not the one and only False."""
    assert verdict_of([Check("x", 0.1, 0.2, np.False_, "")]) == "FAILED"
    assert verdict_of([Check("x", 0.3, 0.2, np.True_, "")]) == "PASSED"
    assert verdict_of([_judged("retain_ratio", ratio=np.float64(LOWER))]) == "FAILED"
