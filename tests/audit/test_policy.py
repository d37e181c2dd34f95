import json
from dataclasses import FrozenInstanceError, replace

import pytest

from audit import PRESETS, Policy, load_policy, policy
from audit.errors import AuditError, PolicyError
from tests.audit.policies import WITH_RUNS

STANDARD = PRESETS["standard"]


def test_standard_judges_one_model_of_a_qualified_method():
    assert (STANDARD.n_models, STANDARD.gate_alpha, STANDARD.qualification) == (8, 0.05, True)
    assert (STANDARD.retain_ratio_min, STANDARD.test_ratio_min) == (0.97, 0.97)
    assert (STANDARD.exchangeability_alpha, STANDARD.forgetting_ratio_min, STANDARD.cost_share_max) == (0.0, 0.5, 0.2)


def test_a_policy_from_before_the_gate_keeps_its_digest(tmp_path):
    # as the first release's `standard` stands in logs and certificates
    before = "6719f52274b367bc6b42b215970aebc4af66bc71045af4d20e994f5633ebeefe"
    assert WITH_RUNS.digest == before
    fields = {name: value for name, value in WITH_RUNS.to_dict().items() if name not in policy.ADDED_LATER}
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(fields))
    assert load_policy(path) == WITH_RUNS


def test_features_are_no_bar_where_they_are_not_looked_at():
    with pytest.raises(PolicyError, match="features_alpha of 0"):
        replace(STANDARD, margins_only=True, features_alpha=0.05)


def test_without_a_bank_of_runs_the_gate_must_judge():
    with pytest.raises(PolicyError, match="gate_alpha above 0"):
        replace(STANDARD, gate_alpha=0.0)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_load_by_name_and_from_their_own_json(name, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text(json.dumps(PRESETS[name].to_dict()))
    assert load_policy(name) == load_policy(path) == PRESETS[name]
    assert PRESETS[name].name == name


@pytest.mark.parametrize("name", ["standard", "strict", "competition"])
def test_the_table_in_the_text_says_what_the_presets_are(name):
    lines = [line for line in policy.__doc__.splitlines() if line.startswith("|") and "---" not in line]
    header, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    column = header.index(name)
    told = {row[0]: row[column].replace("%", "").strip("≥≤ ") for row in rows}
    preset = PRESETS[name]
    assert int(told["models in each bank"]) == preset.n_models
    assert float(told["retain accuracy / bank's"]) == preset.retain_ratio_min
    assert float(told["test accuracy / bank's"]) == preset.test_ratio_min
    for row, level in (
        ("deployed model exchangeable, p", preset.exchangeability_alpha),
        ("gate, α", preset.gate_alpha),
    ):
        assert (0.0 if told[row] == "reported" else float(told[row])) == level
    assert float(told["F / F_null"].removesuffix(" of probes")) == preset.forgetting_ratio_min
    assert (told["the method"] == "qualified", told["runs of the method for each request"] == "–") == (
        (preset.qualification,) * 2
    )
    assert float(told["cost / retraining's"]) == 100 * preset.cost_share_max
    assert int(told["exact retraining, attempts"]) == preset.retrain_attempts
    detection = told["forget set's combined KS, p"]
    assert (0.0 if detection == "reported" else float(detection)) == preset.detection_alpha


def test_the_digest_names_the_bars_and_nothing_else():
    assert STANDARD.digest == replace(STANDARD).digest
    assert STANDARD.digest == replace(STANDARD, ladder=list(STANDARD.ladder)).digest
    assert len({p.digest for p in PRESETS.values()}) == len(PRESETS)
    assert replace(STANDARD, test_ratio_min=0.96).digest != STANDARD.digest
    assert replace(STANDARD, test_ratio_min=1).digest == replace(STANDARD, test_ratio_min=1.0).digest


def test_the_standard_policy_changes_only_on_purpose():
    # The digest stands in logs and certificates. Whoever moves a bar of the preset says so here.
    assert STANDARD.digest == "cbe62b54af2fafd75a2cf56138efd6e94725797c4eb87bf94eff88fe360a356d"


def test_a_policy_is_frozen():
    with pytest.raises(FrozenInstanceError):
        STANDARD.n_models = 1


def test_rungs():
    assert [STANDARD.method_at(rung) for rung in range(3)] == ["remix", "random_mask", "retrain"]
    assert [STANDARD.is_exact(rung) for rung in range(3)] == [False, False, True]
    for rung in (-1, 3):
        with pytest.raises(PolicyError, match=r"\[0, 2\]"):
            STANDARD.method_at(rung)


def test_further_candidates_are_held_to_a_higher_p_and_retraining_is_not():
    assert [STANDARD.level_at(rung, 0.05) for rung in range(3)] == pytest.approx([0.05, 0.10, 0.05])
    assert STANDARD.level_at(1, 0.4) == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "name"),
        ({"n_models": 3}, "n_models=3"),
        ({"n_models": 64.0}, "whole number"),
        ({"n_models": True}, "whole number"),
        ({"qualification": 1}, "true or false"),
        ({"gate_alpha": 0.6}, "gate_alpha"),
        ({"retain_ratio_min": 1.5}, "retain_ratio_min"),
        ({"test_ratio_min": float("nan")}, "test_ratio_min"),
        ({"exchangeability_alpha": 0.6}, "exchangeability_alpha"),
        ({"cost_share_max": "0.2"}, "a number"),
        ({"retrain_attempts": 0}, "retrain_attempts"),
        ({"ladder": ("seif",)}, "retrain"),
        ({"ladder": ("retrain", "seif")}, "retrain"),
        ({"ladder": ()}, "retrain"),
        ({"ladder": ("seif", "seif", "retrain")}, "once"),
        ({"ladder": "retrain"}, "names"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(changes, words):
    with pytest.raises(AuditError, match=words):
        replace(STANDARD, **changes)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"name": "x"}', "all fields"),
        (json.dumps({**STANDARD.to_dict(), "colour": 1}), "colour"),
        (json.dumps({**STANDARD.to_dict(), "n_models": 65}), "digest"),
    ],
)
def test_a_file_that_is_no_policy_is_refused(tmp_path, text, words):
    path = tmp_path / "policy.json"
    path.write_text(text)
    with pytest.raises(PolicyError, match=words):
        load_policy(path)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(PolicyError, match="standard, strict, competition"):
        load_policy("lenient")


@pytest.mark.parametrize("name", ["spare", "catch_up"])
def test_presets_that_start_from_spares_are_standard_with_another_ladder(name):
    preset = PRESETS[name]
    assert preset == replace(STANDARD, name=name, ladder=(name, "retrain"))
    assert preset.reads_spares
    assert not STANDARD.reads_spares
    assert preset.is_exact(0)
    assert preset.level_at(0, 0.05) == preset.level_at(1, 0.05) == 0.05


def test_the_order_of_the_rungs_came_later_than_the_policies_without_it():
    assert replace(STANDARD, cheapest_first=True).digest != STANDARD.digest
    assert "cheapest_first" in policy.ADDED_LATER


def test_the_bar_on_live_predictions_came_later_than_the_policies_without_it():
    assert replace(STANDARD, shadow_changed_max=0.0).digest == STANDARD.digest
    assert replace(STANDARD, shadow_changed_max=0.02).digest != STANDARD.digest
    with pytest.raises(AuditError, match="shadow_changed_max"):
        replace(STANDARD, shadow_changed_max=1.5)


def test_only_a_ladder_of_retraining_is_a_policy_too():
    assert Policy("exact", 64, 0.9, 0.9, 0.05, 0.5, 0.2, ("retrain",)).is_exact(0)
