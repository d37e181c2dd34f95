"""The whole audit: what passes, what does not, and that nothing but the evidence decides."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from audit import PRESETS, Evidence, evaluate
from audit import evaluation as evaluation_module
from audit.errors import BankError, NotANumberError, PolicyError
from audit.evaluation import Views, as_json
from audit.staleness import Staleness
from audit.statistics.exchangeability import exchangeability
from audit.statistics.forgetting import forgetting_ratio
from tests.audit.policies import WITH_RUNS

POLICY = WITH_RUNS


@pytest.fixture(scope="module")
def evidence(draw):
    """Evidence of a candidate whose bank is shifted and narrowed against the references."""

    def evidence(seed=0, *, n_models=64, n_examples=6, shift=0.0, spread=1.0, deployed_shift=None, **changes):
        rng = np.random.default_rng(seed)
        deployed_shift = shift if deployed_shift is None else deployed_shift
        values = {
            "retrained": draw(rng, n_models, n_examples),
            "unlearned": draw(rng, n_models, n_examples, shift=shift, spread=spread),
            "deployed": draw(rng, 1, n_examples, shift=deployed_shift, spread=0.3)[0],
            "original": draw(rng, 1, n_examples, shift=4.0)[0],
            "cost_share": 0.1,
        }
        for set_ in ("retain", "test"):
            for kind in ("retrained", "unlearned"):
                values[f"{set_}_accuracy_{kind}"] = np.clip(rng.normal(0.95, 0.01, n_models), 0, 1)
            values[f"{set_}_accuracy_deployed"] = 0.95
            values[f"{set_}_accuracy_original"] = 0.97
        return Evidence(**(values | changes))

    return evidence


@pytest.fixture(scope="module")
def perfect(evidence):
    """Evaluation of a perfect unlearner under the standard policy."""
    return evaluate(evidence(), POLICY, rung=0, seed=0)


def _results(evaluation) -> dict[str, bool | None]:
    return {check.name: check.passed for check in evaluation.checks}


def test_a_perfect_unlearner_passes(perfect):
    evaluation = perfect
    assert evaluation.verdict == "PASSED", [check.sentence for check in evaluation.checks]
    assert 1.0 in evaluation.forgetting.ratio
    assert (evaluation.method, evaluation.n_models, evaluation.n_unlearned, evaluation.n_examples) == (
        "remix",
        64,
        64,
        6,
    )


def test_each_figure_is_of_its_own_part_of_the_evidence(evidence, monkeypatch):
    """Exchanged by mistake, retain and test accuracies, original and candidate look alike."""
    staleness = Staleness(n_learned=50, n_learned_gone=1)
    given = evidence(n_models=16, staleness=staleness, test_accuracy_deployed=0.9)
    asked = {}

    def seen(*banks, **options):
        asked.update(options)
        return forgetting_ratio(*banks, **options)

    monkeypatch.setattr(evaluation_module, "forgetting_ratio", seen)
    found = evaluate(given, POLICY, rung=0, seed=3)
    assert np.array_equal(asked["retain_accuracy"], given.retain_accuracy_retrained)
    assert np.array_equal(asked["test_accuracy"], given.test_accuracy_retrained)
    assert asked["n_pairs"] == 100  # few images: as many draws as ever
    assert (found.n_models, found.n_unlearned, found.n_examples, found.seed) == (16, 16, 6, 3)
    assert found.cost_share == given.cost_share
    assert found.staleness == staleness
    for name in ("deployed", "original"):
        assert as_json(getattr(found, name)) == as_json(exchangeability(getattr(given, name), given.retrained))
    assert as_json(found.deployed) != as_json(found.original)
    assert found.forget.original.accuracy == pytest.approx(np.mean(given.original > 0))
    assert (found.retain.deployed.accuracy, found.retain.original.accuracy) == (0.95, 0.97)
    assert (found.test.deployed.accuracy, found.test.original.accuracy) == (0.9, 0.97)
    assert found.limits
    many = evidence(n_models=16, n_examples=200)
    evaluate(many, POLICY, rung=0, seed=3)
    assert asked["n_pairs"] == 20


def test_the_fewest_references_are_four_and_costs_are_finite(evidence):
    with pytest.raises(BankError, match="retrained"):
        evidence(retrained=np.zeros((3, 6)), exact=True, unlearned=None)
    with pytest.raises(BankError, match="finite, got inf"):
        evidence(cost_share=math.inf)


def test_a_candidate_that_forgot_nothing_fails(evidence):
    evaluation = evaluate(evidence(shift=4.0), POLICY, rung=0, seed=0)
    assert evaluation.verdict == "FAILED"
    results = _results(evaluation)
    assert results["forgetting_ratio"] is results["exchangeability"] is False
    assert evaluation.detection.ks_combined_p == pytest.approx(0.001)
    assert evaluation.attack.auc.value > 0.9
    assert evaluation.original.p_value < 0.05


def test_a_peaked_bank_fails_though_its_deployed_model_looks_usual(evidence):
    evaluation = evaluate(evidence(spread=0.1), POLICY, rung=0, seed=0)
    results = _results(evaluation)
    assert results["exchangeability"] is True
    assert results["forgetting_ratio"] is False


def _exact(evidence, seed, *, deployed_shift=0.0):
    one = evidence(seed, n_models=65, deployed_shift=deployed_shift)
    return replace(
        one,
        retrained=one.retrained[1:],
        deployed=one.retrained[0] + 1.5 * deployed_shift,
        retain_accuracy_retrained=one.retain_accuracy_retrained[1:],
        retain_accuracy_deployed=float(one.retain_accuracy_retrained[0]),
        test_accuracy_retrained=one.test_accuracy_retrained[1:],
        test_accuracy_deployed=float(one.test_accuracy_retrained[0]),
        unlearned=None,
        retain_accuracy_unlearned=None,
        test_accuracy_unlearned=None,
        cost_share=None,
        exact=True,
    )


def test_exact_retraining_is_audited_without_a_bank(evidence):
    evaluation = evaluate(_exact(evidence, 1), POLICY, rung=2, seed=0)
    assert evaluation.verdict == "PASSED"
    assert evaluation.forgetting is evaluation.score is evaluation.attack is None
    assert evaluation.retain.ratio is None
    assert evaluate(_exact(evidence, 1, deployed_shift=8.0), POLICY, rung=2, seed=0).verdict == "FAILED"


def test_a_run_of_true_retrains_rarely_ends_without_a_model(evidence):
    # Of 180 attempts the exchangeability test rejects 4.6 % and the utility bars almost none: more than 20 has
    # probability 2e-4. A run ends without a model only if all three attempts fail: 60 runs at 4.6 % each give 0.006.
    failed = np.array(
        [evaluate(_exact(evidence, seed), POLICY, rung=2, seed=0).verdict != "PASSED" for seed in range(180)]
    )
    assert failed.sum() <= 20
    assert not failed.reshape(60, 3).all(axis=1).any()


def test_an_exact_rung_may_bring_a_bank_and_is_then_held_to_it(evidence):
    good = replace(evidence(), exact=True, cost_share=None)
    evaluation = evaluate(good, POLICY, rung=2, seed=0)
    assert evaluation.verdict == "PASSED"
    assert _results(evaluation)["forgetting_ratio"] is True
    bad = replace(evidence(shift=4.0, deployed_shift=0.0), exact=True, cost_share=None)
    assert evaluate(bad, POLICY, rung=2, seed=0).verdict == "FAILED"


def test_no_candidate_can_call_itself_exact(evidence):
    with pytest.raises(PolicyError, match="exact=False"):
        evaluate(_exact(evidence, 0), POLICY, rung=0, seed=0)
    with pytest.raises(PolicyError, match="exact=True"):
        evaluate(evidence(), POLICY, rung=2, seed=0)
    with pytest.raises(PolicyError, match="rung"):
        evaluate(evidence(), POLICY, rung=3, seed=0)


def test_small_banks_are_undetermined(evidence):
    evaluation = evaluate(evidence(n_models=32), POLICY, rung=0, seed=0)
    assert evaluation.verdict == "UNDETERMINED"
    needed = {check.name: check.models_needed for check in evaluation.checks if check.passed is None}
    assert needed["bank_size"] == 64
    assert needed["exchangeability"] == 39


def test_strict_asks_for_the_combined_test(evidence):
    strict = replace(PRESETS["strict"], n_models=64)
    found = _results(evaluate(evidence(shift=0.7, deployed_shift=0.0), strict, rung=0, seed=0))
    assert found["detection"] is False
    assert _results(evaluate(evidence(), strict, rung=0, seed=0))["detection"] is True


def test_the_same_inputs_give_the_same_evaluation(evidence, perfect):
    first, again = perfect.to_dict(), evaluate(evidence(), POLICY, rung=0, seed=0).to_dict()
    assert first == again
    other = evaluate(evidence(), POLICY, rung=0, seed=4).to_dict()
    assert other["forgetting"]["ratio"] != first["forgetting"]["ratio"]
    assert other["score"] == first["score"]


@pytest.mark.parametrize("kind", ["usual", "exact", "separated", "constant"])
def test_it_becomes_plain_json(evidence, kind):
    one = {
        "usual": evidence,
        "exact": lambda: _exact(evidence, 0),
        "separated": lambda: evidence(shift=1e9),
        "constant": lambda: evidence(
            n_models=40, n_examples=2, unlearned=np.ones((40, 2)), retrained=np.ones((40, 2)), original=[np.inf] * 2
        ),
    }[kind]()
    figures = evaluate(one, POLICY, rung=2 if one.exact else 0, seed=0).to_dict()
    text = json.dumps(figures, allow_nan=False)
    assert json.loads(text) == figures
    assert figures["policy"]["digest"] == POLICY.digest
    assert "evidence" not in figures
    if kind == "constant":
        assert figures["score"]["forgetting"]["value"] is None
        assert figures["verdict"] == "FAILED"


def test_json_of_what_json_does_not_know():
    assert as_json({"a": (np.nan, np.inf, -np.inf, np.float64(1), np.int64(2), np.bool_(True), None, "x")}) == {
        "a": [None, "inf", "-inf", 1.0, 2, True, None, "x"]
    }


def test_evidence_is_checked_when_it_is_made(evidence):
    bad = np.zeros((64, 6))
    bad[7, 2] = np.nan
    with pytest.raises(NotANumberError, match="model 7 on example 2 in unlearned"):
        evidence(unlearned=bad)
    with pytest.raises(BankError, match="same examples"):
        evidence(unlearned=np.zeros((64, 5)))
    with pytest.raises(BankError, match="deployed"):
        evidence(deployed=np.zeros(5))
    with pytest.raises(BankError, match=r"retain_accuracy_retrained of shape \(64,\)"):
        evidence(retain_accuracy_retrained=np.ones(3))
    with pytest.raises(BankError, match="test_accuracy_deployed"):
        evidence(test_accuracy_deployed=95.0)
    with pytest.raises(BankError, match="retain_accuracy_unlearned"):
        evidence(retain_accuracy_unlearned=None)
    with pytest.raises(BankError, match="cost_share"):
        evidence(cost_share=None)
    with pytest.raises(BankError, match="cost_share"):
        evidence(cost_share=float("nan"))


def _views(bank, n_views=10):
    """The same margins in every view, `(…, n_views, n_examples)`."""
    return np.repeat(np.asarray(bank)[..., None, :], n_views, axis=-2)


def _one_model(evidence, draw, *, deployed_shift: float, **changes):
    """Evidence of a qualified method's candidate: eight references, no bank of runs."""
    given = evidence(n_models=8, deployed_shift=deployed_shift)
    originals = draw(np.random.default_rng(9), 16, 6, shift=4.0)
    views = Views(_views(given.deployed), _views(given.retrained), _views(originals))
    gone = {"unlearned": None, "retain_accuracy_unlearned": None, "test_accuracy_unlearned": None}
    return replace(given, views=views, **{"qualification": "All 8 of 8 probes passed."} | gone | changes)


def test_a_qualified_method_is_judged_by_the_gate_alone(evidence, draw):
    usual = evaluate(_one_model(evidence, draw, deployed_shift=0.0), PRESETS["standard"], rung=0, seed=0)
    assert usual.verdict == "PASSED", [check.sentence for check in usual.checks]
    assert (usual.n_models, usual.n_unlearned, usual.forgetting) == (8, 0, None)
    assert usual.gate.power > 0.5
    assert usual.gate.learned.low > 0
    told = json.loads(json.dumps(usual.to_dict(), allow_nan=False))
    assert told["gate"]["p_adjusted"] >= 0.05
    assert told["qualification"] == "All 8 of 8 probes passed."
    forgot_nothing = evaluate(_one_model(evidence, draw, deployed_shift=5.0), PRESETS["standard"], rung=0, seed=0)
    assert forgot_nothing.verdict == "FAILED"
    assert _results(forgot_nothing)["gate"] is False
    unqualified = _one_model(evidence, draw, deployed_shift=0.0, qualification=None)
    assert evaluate(unqualified, PRESETS["standard"], rung=0, seed=0).verdict == "UNDETERMINED"


def test_without_a_qualification_in_the_policy_a_bank_of_runs_is_needed(evidence, draw):
    with pytest.raises(BankError, match="only exact retraining may omit it"):
        evaluate(_one_model(evidence, draw, deployed_shift=0.0), POLICY, rung=0, seed=0)


def test_the_gate_s_level_grows_with_the_rung_as_the_other_test_s(evidence, draw):
    given = _one_model(evidence, draw, deployed_shift=0.0)
    levels = [evaluate(given, PRESETS["standard"], rung=rung, seed=0).gate.alpha for rung in (0, 1)]
    assert levels == [0.05, 0.1]
    reported = replace(PRESETS["standard"], gate_alpha=0.0, qualification=False)
    exact = replace(given, exact=True, cost_share=None)
    assert evaluate(exact, reported, rung=2, seed=0).gate.alpha == 0.05  # at the usual level, without a bar
