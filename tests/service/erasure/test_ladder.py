"""The order in which a run tries the rungs: the policy's, or that of their expected price."""

from __future__ import annotations

from dataclasses import replace

import pytest

from audit.qualification import Bars
from service.context import Context
from service.erasure import candidates
from service.erasure.ladder import by_price, steps
from service.store.engine import session
from service.store.tables import Attempt
from service.training import data
from tests.service import tiny
from tests.service.qualified import write_qualification

POLICY = replace(
    tiny.POLICY, ladder=("finetune", "seif", "spare", "catch_up", "retrain"), gate_alpha=0.01, qualification=True,
    cheapest_first=True, cost_share_max=1.0,
)  # fmt: skip


def options(context: Context, policy=POLICY):
    from unlearning.methods import settings_for

    return {name: settings_for(name, data.recipe_of(context)).to_dict() for name in policy.ladder}


def ordered(context: Context, policy=POLICY, *, has_spare: bool = False):
    return by_price(context, policy, data.recipe_of(context), options(context, policy), has_spare=has_spare)


def qualify(context: Context, method: str) -> None:
    recipe, n = data.recipe_of(context), len(tiny.people(context))
    write_qualification(context, method=method, recipe=recipe, n_subjects=n, bars=Bars.of(POLICY))


def test_without_qualification_or_spare_exact_retraining_is_first(tiny_context: Context) -> None:
    found = ordered(tiny_context)
    assert [rung.method for rung in found] == ["retrain", "finetune", "seif", "spare", "catch_up"]
    assert found[0].trainings == pytest.approx(1 / 0.99)
    assert found[0].why == "A candidate costs 1.00 trainings and passes with probability 0.99: 1.01."
    assert [rung.trainings for rung in found[1:]] == [None] * 4
    assert "never qualified" in found[1].why
    assert "no spare" in found[3].why


def test_what_is_cheaper_comes_first(tiny_context: Context) -> None:
    qualify(tiny_context, "seif")
    found = ordered(tiny_context, has_spare=True)
    assert [rung.method for rung in found] == ["spare", "seif", "catch_up", "retrain", "finetune"]
    spare, seif, catch_up = (rung.trainings for rung in found[:3])
    assert spare == 0
    assert catch_up == pytest.approx(4 / 12 / 0.99)  # four epochs of the recipe's twelve
    assert seif == pytest.approx(0.1 / 0.75)


def test_runs_for_each_request_are_in_the_price(tiny_context: Context) -> None:
    policy = replace(POLICY, ladder=("finetune", "retrain"), qualification=False, cost_share_max=0.2)
    found = ordered(tiny_context, policy)
    assert [rung.method for rung in found] == ["retrain", "finetune"]
    assert found[1].trainings == pytest.approx(0.2 * 5 / 0.5)  # with four runs; none was judged yet


def test_what_passed_before_counts(tiny_context: Context) -> None:
    policy = replace(POLICY, ladder=("finetune", "retrain"), qualification=False, cost_share_max=0.1)
    with session(tiny_context.engine) as s:
        for step, verdict in enumerate(["PASSED", "PASSED", "FAILED", "UNDETERMINED"]):
            s.add(
                Attempt(
                    run_id="r", step=step, method="finetune", seed=0, started_at=tiny_context.now(), verdict=verdict
                )
            )
        s.commit()
    assert ordered(tiny_context, policy)[0].trainings == pytest.approx(0.1 * 5 / (3 / 5))


def test_retraining_is_tried_as_often_as_the_policy_says_wherever_it_stands() -> None:
    assert steps(tiny.POLICY, ()) == ("finetune", "retrain", "retrain")
    assert steps(tiny.POLICY, ("retrain", "finetune")) == ("retrain", "retrain", "finetune")


def test_a_run_follows_its_order_and_says_why(tiny_context: Context) -> None:
    run_id = tiny.plan_run(tiny_context, tiny.people(tiny_context)[0], policy=POLICY)
    work = tiny.workspace(tiny_context, run_id, POLICY)
    assert work.plan.rungs[0] == "retrain"
    assert candidates.unlearn(work, 0) is None
    assert tiny.try_step(tiny_context, run_id, 0, POLICY)
    (attempt,) = tiny.attempts(tiny_context)
    assert attempt.method == "retrain"
    assert attempt.figures["price"]["order"][0]["why"].startswith("A candidate costs 1.00 trainings")
    report = next(tiny_context.settings.reports_folder.rglob("step-0.html")).read_text()
    assert "Order of the ladder, by expected price" in report


def test_a_rung_keeps_the_level_of_its_place_in_the_policy(tiny_context: Context) -> None:
    qualify(tiny_context, "seif")
    run_id = tiny.plan_run(tiny_context, tiny.people(tiny_context)[0], policy=POLICY)
    assert tiny.workspace(tiny_context, run_id, POLICY).plan.rungs[0] == "seif"
    tiny.try_step(tiny_context, run_id, 0, POLICY)
    (attempt,) = tiny.attempts(tiny_context)
    assert attempt.figures["gate"]["alpha"] == pytest.approx(0.02)  # second of the ladder
