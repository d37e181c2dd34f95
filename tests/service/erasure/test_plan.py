from __future__ import annotations

import json
import shutil
from dataclasses import asdict

import pytest

from service.erasure.candidates import spec_of
from service.erasure.references import bank_plan
from service.erasure.workspace import RunFolder
from service.errors import DataFolderError
from service.requests import data_folder
from service.training.production import train_production
from service.training.spec import open_images
from tests.service import tiny
from unlearning.faces.dataset import read_rows


def people_at(work, rows):
    return set(work.faces.subjects[rows].tolist())


def test_a_plan_is_made_once(tiny_context):
    person, other = tiny.people(tiny_context)[:2]
    run_id = tiny.claim_run(tiny_context, person)
    plan = tiny.workspace(tiny_context, run_id).make_plan()
    tiny.repaint(tiny.images_of(tiny_context, other)[0])
    assert tiny.workspace(tiny_context, run_id).make_plan() == plan
    assert tiny.workspace(tiny_context, run_id).plan == plan


def test_the_plan_s_file_names_nobody(tiny_context):
    everybody = tiny.people(tiny_context) + tiny.people(tiny_context, "test")
    run_id = tiny.claim_run(tiny_context, *everybody[:3], "nobody-we-know")
    plan = tiny.workspace(tiny_context, run_id).make_plan()
    stored = (RunFolder(tiny_context.settings, run_id).path / "plan.json").read_text()
    assert json.loads(stored) == asdict(plan)
    assert not any(person in stored for person in [*everybody, "nobody-we-know"])


def test_a_model_in_service_that_answers_one_class_only_is_not_audited(tiny_context):
    person, *_, young = tiny.people(tiny_context)
    tiny.make_lopsided(tiny_context, young=young)
    train_production(tiny_context, seed=0)
    run_id = tiny.claim_run(tiny_context, person)
    plan = tiny.workspace(tiny_context, run_id).make_plan()
    assert plan.obstacle is not None
    assert plan.obstacle.startswith("Expected the model in service to tell its classes apart, but it answers one")
    assert "every audit of it passes" in plan.obstacle
    assert plan.obstacle.endswith("Then approve.")


def test_everybody_else_is_kept_but_those_who_wait(tiny_context):
    person, waiting, *others = tiny.people(tiny_context)
    run_id = tiny.claim_run(tiny_context, person)
    tiny.file(tiny_context, waiting)
    work = tiny.workspace(tiny_context, run_id)
    plan = work.make_plan()
    assert people_at(work, plan.forget) == {person}
    assert people_at(work, plan.retain) == set(others)
    bank = people_at(work, plan.bank["retain"])
    assert not {person, waiting} & bank


def test_what_is_held_of_each_person_is_counted(tiny_context):
    trained, tested = tiny.people(tiny_context)[0], tiny.people(tiny_context, "test")[0]
    run_id = tiny.claim_run(tiny_context, trained, tested, "nobody-we-know")
    plan = tiny.workspace(tiny_context, run_id).make_plan()
    by_person = {request.user_id: request.id for request in tiny.requests(tiny_context)}
    assert [plan.images_of[by_person[who]] for who in (trained, tested, "nobody-we-know")] == [3, 3, 0]
    assert [plan.trained_of[by_person[who]] for who in (trained, tested, "nobody-we-know")] == [3, 0, 0]
    assert plan.must_unlearn


@pytest.mark.parametrize("who", ["test person", "nobody-we-know"])
def test_nothing_to_unlearn_where_nothing_was_learned(tiny_context, who):
    person = tiny.people(tiny_context, "test")[0] if who == "test person" else who
    plan = tiny.workspace(tiny_context, tiny.claim_run(tiny_context, person)).make_plan()
    assert not plan.must_unlearn
    assert (plan.forget, plan.bank) == ([], {})


def test_where_too_few_people_are_left_a_human_is_told_why(tiny_context):
    plan = tiny.workspace(tiny_context, tiny.claim_run(tiny_context, *tiny.people(tiny_context))).make_plan()
    assert plan.obstacle is not None
    assert plan.obstacle.startswith("Too few other people are left")


def test_a_model_cannot_be_judged_once_nobody_is_left_to_test_it_on(tiny_context):
    tiny.change_table(tiny_context.settings, lambda row: row | {"split": "train"})
    plan = tiny.workspace(tiny_context, tiny.claim_run(tiny_context, tiny.people(tiny_context)[0])).make_plan()
    assert plan.obstacle is not None


def test_the_last_person_of_a_class_is_erased_like_any_other(tiny_context):
    last = tiny.people(tiny_context)[0]
    tiny.change_table(tiny_context.settings, lambda row: row | {"label": "old" if row["user_id"] == last else "young"})
    run_id = tiny.plan_run(tiny_context, last)
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    tiny.finish(tiny_context, run_id)
    left = read_rows(tiny_context.settings.data_folder)
    assert {row.label for row in left} == {"young"}
    plan = tiny.workspace(tiny_context, tiny.claim_run(tiny_context, left[0].user_id)).make_plan()
    assert plan.classes == ["old", "young"]
    assert plan.obstacle is None


def test_a_service_without_data_or_model(context, clock):
    tiny.file(context, "s31")
    clock.advance(seconds=context.settings.hold_seconds)
    run_id = tiny.claim(context, tiny.POLICY)
    plan = tiny.workspace(context, run_id).make_plan()
    assert plan.obstacle == data_folder.MISSING


def test_the_plan_s_bank_is_the_one_planned(tiny_context):
    a, b = tiny.same_block(tiny_context)
    work = tiny.workspace(tiny_context, tiny.claim_run(tiny_context, a))
    work.make_plan()
    expected, found = tiny.plan_for(tiny_context, a), bank_plan(work)
    assert (found.key, found.example_ids, found.tags) == (expected.key, expected.example_ids, expected.tags)
    for name in ("retain", "scored", "retain_scored", "test"):
        assert getattr(found.spec, name).tolist() == getattr(expected.spec, name).tolist()
    spec = spec_of(work, "retrain")
    assert spec.retain_scored.tolist() == found.spec.retain.tolist()  # both banks are measured on the same rows
    assert people_at(work, spec.scored) == {a}
    assert b in people_at(work, spec.retain)


def test_a_data_folder_that_changed_after_the_plan_is_refused(tiny_context):
    person, other = tiny.people(tiny_context)[:2]
    work = tiny.workspace(tiny_context, tiny.claim_run(tiny_context, person))
    work.make_plan()
    tiny.repaint(tiny.images_of(tiny_context, other)[0])
    open_images.cache_clear()  # as in a process started since
    with pytest.raises(DataFolderError, match="changed meanwhile"):
        work.faces  # noqa: B018


def test_a_plan_whose_folder_was_removed(tiny_context):
    run_id = tiny.claim_run(tiny_context, tiny.people(tiny_context)[0])
    tiny.workspace(tiny_context, run_id).make_plan()
    shutil.rmtree(tiny_context.settings.runs_folder / run_id)
    with pytest.raises(FileNotFoundError, match="the folder was removed"):
        tiny.workspace(tiny_context, run_id).plan  # noqa: B018
