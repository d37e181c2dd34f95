from dataclasses import replace

import numpy as np
import pytest

from audit import PRESETS, Check
from audit.checks import all_checks, verdict_of
from audit.exchangeability import Exchangeability
from audit.forgetting import ForgettingRatio
from audit.intervals import Interval
from audit.utility import utility

POLICY = PRESETS["standard"]


def _forgetting(value: float) -> ForgettingRatio:
    interval = Interval(value, value * 0.9, value * 1.1)
    return ForgettingRatio(*[interval] * 6, 32, 10, np.zeros(20), np.zeros(10))


def _checks(
    *, policy=POLICY, rung=0, ratio=1.0, deployed_ratio=1.0, p=0.4, forgetting=1.0, cost=0.1, n=64, exact=False
):
    rng = np.random.default_rng(0)
    bank = np.clip(rng.normal(0.9, 0.005, n), 0, 1)
    figures = utility(bank, None if exact else bank * ratio, float(bank.mean() * deployed_ratio), 0.9, seed=0)
    checks = all_checks(
        policy,
        rung=rung,
        n_retrained=n,
        n_unlearned=None if exact else n,
        retain=figures,
        test=figures,
        deployed=Exchangeability(p, 0.5, np.full(n, 0.5), n),
        forgetting=None if exact else _forgetting(forgetting),
        detection=None,
        cost_share=None if exact else cost,
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
    assert checks["forgetting_ratio"].passed is None
    assert verdict_of(checks.values()) == "UNDETERMINED"


def test_exact_retraining_is_asked_only_what_applies():
    checks = _checks(exact=True, rung=2)
    assert {name for name, check in checks.items() if not check.applicable} == {
        "retain_ratio",
        "test_ratio",
        "forgetting_ratio",
        "detection",
        "cost_share",
    }
    assert all(check.passed is None for check in checks.values() if not check.applicable)
    assert verdict_of(checks.values()) == "PASSED"
    assert _verdict(exact=True, rung=2, p=0.01) == "FAILED"


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


def test_verdicts():
    passed, failed, open_, not_asked = (
        Check("x", 1.0, 1.0, result, "", applicable=applicable)
        for result, applicable in ((True, True), (False, True), (None, True), (None, False))
    )
    assert verdict_of([passed, not_asked]) == "PASSED"
    assert verdict_of([passed, open_]) == "UNDETERMINED"
    assert verdict_of([open_, failed]) == "FAILED"
