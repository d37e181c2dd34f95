"""What is worth its price, by hand."""

from __future__ import annotations

import pytest

from audit.policy import PRESETS
from service.errors import InvalidInputError
from service.studies.ladders import policy_of
from service.studies.preparation import Asked, Facts, decide
from unlearning.errors import MethodError

STANDARD = PRESETS["standard"]
MANY = Facts(n_subjects=2000, n_references=176, n_blocks=20, oracles={"remix": 0, "random_mask": 0})


def test_everything_is_done_where_it_can_pay() -> None:
    plan = decide(Asked(STANDARD), MANY)
    assert plan.references == 176
    assert plan.methods == plan.tuned == ("remix", "random_mask")
    # three subjects, 32 references each; two originals and 9 times 16 runs on each subject, at a fifth, for each method
    assert plan.searches == pytest.approx(3 * 32 + 2 * (2 + 9 * 16 * 3 * 0.2))
    assert plan.qualifications == pytest.approx(8 * 23 + 1 + 8 + 2 * 8 * 23 * 0.2 + 8 + 4 + 3 + 2 * 6 * 0.2)
    assert plan.reasons == ()


def test_oracles_are_in_the_price() -> None:
    asked = Asked(STANDARD, ("oracle_matching",))
    without = decide(asked, MANY)
    facts = Facts(n_subjects=2000, n_references=176, n_blocks=20, oracles={"oracle_matching": 128})
    plan = decide(asked, facts)
    assert plan.searches - without.searches == 3 * 128
    assert plan.qualifications - without.qualifications == 9 * 128  # for each probe subject, and for the canaries


def test_methods_that_cannot_pay_are_left_out_unless_they_are_named() -> None:
    few = Facts(n_subjects=32, n_references=272, n_blocks=32)
    plan = decide(Asked(STANDARD), few)
    assert (plan.references, plan.methods, plan.searches, plan.qualifications) == (272, (), 0.0, 0.0)
    (reason,) = plan.reasons
    assert "up to 557 trainings" in reason
    assert "there are 32 subjects" in reason
    assert decide(Asked(STANDARD, ("remix",)), few).methods == ("remix",)


def test_what_does_not_fit_is_left_out_whole_and_said() -> None:
    at = {n: decide(Asked(STANDARD, most_trainings=n), MANY) for n in (100, 300, 700, 800)}
    assert at[100].references == 0
    assert at[100].methods == ()
    assert "they cost 176 trainings, and 100 were allowed" in at[100].reasons[0]
    assert (at[300].references, at[300].spares, at[300].methods) == (176, 20, ())
    assert (
        "remix alone costs up to 430 trainings, and of the 300 allowed for everything 103 are left"
        in (at[300].reasons[0])
    )
    assert at[700].methods == ("remix",)
    assert at[700].reasons == ("Left out, because they do not fit into 700 trainings: random_mask.",)
    assert at[800].methods == ("remix", "random_mask")


def test_parts_can_be_left_out() -> None:
    plan = decide(Asked(STANDARD, without=frozenset({"references"})), MANY)
    assert (plan.references, plan.methods) == (0, ("remix", "random_mask"))
    plan = decide(Asked(STANDARD, without=frozenset({"tune"})), MANY)
    assert (plan.methods, plan.tuned, plan.searches) == (("remix", "random_mask"), (), 0.0)
    plan = decide(Asked(STANDARD, without=frozenset({"qualify"})), MANY)
    assert (plan.references, plan.methods, plan.tuned) == (176, (), ())
    assert plan.reasons == (
        "Qualification is left out, and with it tuning, which nothing else here uses: remix, random_mask.",
    )


@pytest.mark.parametrize("name", ["strict", "competition"])
def test_a_policy_that_draws_runs_for_each_request_needs_no_qualification(name: str) -> None:
    policy = PRESETS[name]
    plan = decide(Asked(policy), MANY)
    assert plan.methods == ()
    assert f"draws {policy.n_models} runs of a method for each request" in plan.reasons[0]


def test_too_few_subjects_are_no_lot() -> None:
    plan = decide(Asked(STANDARD, ("remix",)), Facts(n_subjects=3, n_references=40, n_blocks=3))
    assert plan.methods == ()
    assert "with 3 subjects to train on" in plan.reasons[0]
    asked = Asked(STANDARD, ("remix",), without=frozenset({"tune"}))
    assert decide(asked, Facts(n_subjects=3, n_references=40, n_blocks=3)).methods == ("remix",)
    assert Facts(n_subjects=5, n_references=1, n_blocks=1).n_tuning == 2


@pytest.mark.parametrize("name", ["spare", "catch_up"])
def test_a_policy_with_spares_keeps_its_rung_and_has_no_method_in_question(name: str) -> None:
    asked = Asked(PRESETS[name])
    assert (asked.candidates, asked.spare_rung, Asked(STANDARD).spare_rung) == ((), name, "spare")
    assert decide(asked, MANY).spares == 20


def test_spares_are_kept_for_each_block_and_can_be_left_out() -> None:
    assert decide(Asked(STANDARD), MANY).spares == 20
    for left_out in ({"spares"}, {"references"}):
        plan = decide(Asked(STANDARD, without=frozenset(left_out)), MANY)
        assert plan.spares == 0
        assert "Spares are left out" in plan.reasons[-1]
    plan = decide(Asked(STANDARD, most_trainings=177), MANY)
    assert (plan.references, plan.spares) == (176, 0)
    assert plan.reasons[0] == "Spares are left out: they cost 20 trainings, and 0 are left."
    assert decide(Asked(STANDARD, most_trainings=197), MANY).spares == 20


def test_a_ladder_without_methods_has_no_candidates() -> None:
    plan = decide(Asked(policy_of(STANDARD, ("retrain",))), MANY)
    assert plan.reasons == (
        "No method is qualified: the ladder of the policy standard-recommended has none, and none was named.",
    )


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"methods": ("hope",)}, MethodError, "Unknown method 'hope'"),
        ({"methods": ("retrain",)}, InvalidInputError, "retrain is exact"),
        ({"n_probes": 2}, InvalidInputError, "at least 3 probe subjects"),
        ({"n_models": 7}, InvalidInputError, "and 8 references and runs"),
        ({"n_trials": 0}, InvalidInputError, "at least 1 trial"),
        ({"most_trainings": 0}, InvalidInputError, "Expected at least 1 training to pay for, got 0"),
        ({"without": frozenset({"hope"})}, InvalidInputError, "Expected parts among references, spares, tune, qualify"),
    ],
)
def test_what_cannot_be_asked_is_said(options: dict[str, object], error: type[Exception], sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        Asked(STANDARD, **options)
