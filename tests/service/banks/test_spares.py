"""Spares: models trained ahead without a block, kept so that an erasure has nothing to train."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from audit.proof.certificate import verify
from service.banks import spares
from service.banks.refresh import rebuild, survey
from service.cli import app
from service.context import Context
from service.erasure import candidates, judging, reruns
from service.errors import DataChangedError, WeightsError
from service.models import deployment, registry, rosters
from service.requests.runs import advance
from service.store.engine import reading, session
from service.store.tables import OpenLine
from service.training import data
from service.training.spec import open_images
from tests.service import tiny
from tests.service.banks.test_refresh import erase

POLICY = replace(tiny.POLICY, ladder=("spare", "retrain"), staleness_max=0.25)
CATCHING_UP = replace(POLICY, ladder=("catch_up", "retrain"))
SPARE, RETRAIN = 0, 1


def nothing(done: int, wanted: int) -> None:
    pass


def images(context: Context):
    return data.images_in_service(context, data.recipe_of(context))


def plans(context: Context, *people: str):
    tags = {context.keyring.block_hash(person) for person in people}
    return [block.plan for block in survey(context, POLICY) if not tags.isdisjoint(block.plan.tags)]


def found(context: Context, *people: str):
    return spares.find(context, data.recipe_of(context), open_images(images(context)), people)


@pytest.fixture
def pair(tiny_context: Context) -> tuple[str, str]:
    """Two people of one block that has a spare."""
    pair = tiny.same_block(tiny_context)
    spares.train_spares(tiny_context, data.recipe_of(tiny_context), plans(tiny_context, pair[0]), nothing)
    return pair


def other_block(context: Context, pair: tuple[str, str]) -> str:
    return next(person for person in tiny.people(context) if person not in pair)


def test_a_spare_knows_nobody_of_its_block_and_everybody_else(tiny_context: Context, pair) -> None:
    spare = found(tiny_context, pair[0])
    faces = open_images(images(tiny_context))
    known = {faces.people[i] for i in faces.subject_of[spare.rows]}
    assert known == set(tiny.people(tiny_context)) - set(pair)
    with reading(tiny_context.engine) as s:
        assert rosters.read(s, spare.digest) == rosters.of_rows(tiny_context.keyring, faces, spare.rows)
    assert registry.get(tiny_context, spare.digest).state == registry.SPARE
    assert found(tiny_context, *pair).digest == spare.digest
    assert found(tiny_context, other_block(tiny_context, pair)) is None


def test_it_is_trained_once(tiny_context: Context, pair) -> None:
    recipe = data.recipe_of(tiny_context)
    assert spares.train_spares(tiny_context, recipe, plans(tiny_context, pair[0]), nothing) == 0
    assert spares.count(tiny_context) == 1


def test_data_that_changed_under_it_make_it_unusable(tiny_context: Context, pair) -> None:
    tiny.repaint(tiny.images_of(tiny_context, other_block(tiny_context, pair))[0])
    assert found(tiny_context, pair[0]) is None
    recipe = data.recipe_of(tiny_context)
    assert spares.train_spares(tiny_context, recipe, plans(tiny_context, pair[0]), nothing) == 1
    assert spares.count(tiny_context) == 1  # the unusable one was destroyed
    assert found(tiny_context, pair[0]) is not None


def test_one_that_another_version_of_a_library_trained_is_unusable(tiny_context: Context, pair) -> None:
    """A certificate names the versions that are here, and a second training has to give the same weights."""
    with session(tiny_context.engine) as s:
        version = registry.find(s, found(tiny_context, pair[0]).digest)
        version.manifest = {**version.manifest, "versions": {**version.manifest["versions"], "torch": "1.0"}}
        s.add(version)
        s.commit()
    assert found(tiny_context, pair[0]) is None
    recipe = data.recipe_of(tiny_context)
    assert spares.train_spares(tiny_context, recipe, plans(tiny_context, pair[0]), nothing) == 1
    assert spares.count(tiny_context) == 1


def test_nothing_is_destroyed_while_a_run_may_name_it(tiny_context: Context, pair) -> None:
    tiny.repaint(tiny.images_of(tiny_context, other_block(tiny_context, pair))[0])
    with session(tiny_context.engine) as s:
        s.add(OpenLine(line="default", run_id="r"))
        s.commit()
    recipe = data.recipe_of(tiny_context)
    assert spares.train_spares(tiny_context, recipe, plans(tiny_context, pair[0]), nothing) == 1
    assert spares.count(tiny_context) == 2


def test_what_was_trained_before_a_kill_stays(tiny_context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, everybody = data.recipe_of(tiny_context), tiny.people(tiny_context)
    asked = plans(tiny_context, *everybody)[:2]

    def killed(self: Context, point: str) -> None:
        if point == "building.spare":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Context, "reached", killed)
        with pytest.raises(KeyboardInterrupt):
            spares.train_spares(tiny_context, recipe, asked, nothing)
    assert spares.count(tiny_context) == 1
    assert spares.train_spares(tiny_context, recipe, asked, nothing) == 1
    assert not list(tiny_context.settings.home.glob(".training-*"))


def test_a_spare_is_not_registered_if_somebody_was_erased_meanwhile(tiny_context: Context) -> None:
    pair = tiny.same_block(tiny_context)
    asked = plans(tiny_context, pair[0])

    def erased(done: int, wanted: int) -> None:
        if done == 0:
            erase(tiny_context, other_block(tiny_context, pair))

    with pytest.raises(DataChangedError):
        spares.train_spares(tiny_context, data.recipe_of(tiny_context), asked, erased)
    assert spares.count(tiny_context) == 0


def erasure(context: Context, person: str, policy=POLICY) -> str:
    run_id = tiny.plan_run(context, person, policy=policy)
    assert tiny.try_step(context, run_id, SPARE, policy)
    made = tiny.workspace(context, run_id, policy).folder.read("step-0")
    assert (made["n_backward"] == 0) == (policy is POLICY)
    tiny.finish(context, run_id, policy)
    return run_id


def test_an_erasure_by_the_spare_trains_nothing(tiny_context: Context, pair) -> None:
    spare = found(tiny_context, pair[0])
    run_id = erasure(tiny_context, pair[0])
    (attempt,) = tiny.attempts(tiny_context)
    assert (attempt.method, attempt.candidate_digest) == ("spare", spare.digest)
    price = attempt.figures["price"]
    assert price["trainings"].keys() <= {"candidates"}
    assert price["afterwards"] == pytest.approx(spare.seconds / price["training_seconds"])
    assert deployment.pointer(tiny_context).committed_digest == spare.digest
    assert registry.get(tiny_context, spare.digest).state == "active"
    record = tiny.certificates(tiny_context)[-1]
    result = verify(record.envelope)
    assert result.valid, result.checks
    predicate = result.statement["predicate"]
    assert predicate["procedure"]["settings"] == {"spare": spare.digest}
    assert record.run_id == run_id
    with reading(tiny_context.engine) as s:  # the other person of the block was not learned from either
        assert tiny_context.keyring.subject_hash(pair[1]) not in rosters.read(s, spare.digest)


def test_catching_up_learns_from_the_rest_of_the_block(tiny_context: Context, pair) -> None:
    spare = found(tiny_context, pair[0])
    erasure(tiny_context, pair[0], CATCHING_UP)
    (attempt,) = tiny.attempts(tiny_context)
    assert attempt.method == "catch_up"
    assert attempt.candidate_digest != spare.digest
    with reading(tiny_context.engine) as s:
        known = rosters.read(s, attempt.candidate_digest)
    assert tiny_context.keyring.subject_hash(pair[1]) in known
    assert tiny_context.keyring.subject_hash(pair[0]) not in known
    manifest = registry.get(tiny_context, attempt.candidate_digest).manifest
    assert manifest["lineage"]["parent"] == spare.digest
    assert registry.get(tiny_context, spare.digest).state == registry.SPARE  # it remembers nobody who was erased


def test_the_spares_of_other_blocks_are_destroyed_with_the_person(tiny_context: Context, pair) -> None:
    other = other_block(tiny_context, pair)
    erasure_of_other = tiny.plan_run(tiny_context, other)
    spare = found(tiny_context, pair[0])
    assert tiny.try_step(tiny_context, erasure_of_other, tiny.RETRAIN)
    tiny.finish(tiny_context, erasure_of_other)
    assert registry.get(tiny_context, spare.digest).destroyed_at is not None
    assert not registry.is_held(tiny_context, spare.digest)
    predicate = verify(tiny.certificates(tiny_context)[-1].envelope).statement["predicate"]
    assert predicate["purge"]["destroyed"]["spare models"] == 1
    assert found(tiny_context, pair[0]) is None
    assert rebuild(tiny_context, POLICY, missing_too=True) > 0
    assert found(tiny_context, pair[0]) is not None


def test_without_a_spare_the_rung_is_passed_over(tiny_context: Context) -> None:
    run_id = tiny.plan_run(tiny_context, tiny.people(tiny_context)[0], policy=POLICY)
    assert candidates.unlearn(tiny.workspace(tiny_context, run_id, POLICY), SPARE) == candidates.NO_SPARE
    assert tiny.try_step(tiny_context, run_id, RETRAIN, POLICY)


def test_a_spare_that_was_damaged_is_passed_over(tiny_context: Context, pair) -> None:
    run_id = tiny.plan_run(tiny_context, pair[0], policy=POLICY)
    spare = found(tiny_context, pair[0])
    registry.path(tiny_context.settings, spare.digest).write_bytes(b"altered")
    why = candidates.unlearn(tiny.workspace(tiny_context, run_id, POLICY), SPARE)
    assert why is not None
    assert "Expected weights with SHA-256" in why


@pytest.mark.parametrize("policy", [POLICY, CATCHING_UP], ids=lambda policy: policy.ladder[0])
def test_a_rerun_trains_the_spare_again(tiny_context: Context, pair, policy) -> None:
    context = replace(tiny_context, settings=tiny_context.settings.model_copy(update={"rerun_share": 1.0}))
    run_id = tiny.plan_run(context, pair[0], policy=policy)
    assert tiny.try_step(context, run_id, SPARE, policy)
    assert reruns.carry_out(tiny.workspace(context, run_id, policy)) is None
    rerun = tiny.workspace(context, run_id, policy).folder.read("rerun")
    assert rerun["weights_digest"] == tiny.attempts(context)[0].candidate_digest
    assert not list(tiny.workspace(context, run_id, policy).folder.path.glob("again-*"))


def test_a_rerun_trains_the_run_s_spare_and_no_newer_one(
    tiny_context: Context, pair, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = replace(tiny_context, settings=tiny_context.settings.model_copy(update={"rerun_share": 1.0}))
    run_id = tiny.plan_run(context, pair[0], policy=POLICY)
    assert tiny.try_step(context, run_id, SPARE, POLICY)
    clock.advance(seconds=1)
    with monkeypatch.context() as patched:  # another process looked before the first spare was there
        patched.setattr(spares, "lacking", lambda context, recipe, plans: list(plans))
        spares.train_spares(context, data.recipe_of(context), plans(context, pair[0]), nothing)
    assert spares.count(context) == 2
    assert reruns.carry_out(tiny.workspace(context, run_id, POLICY)) is None
    rerun = tiny.workspace(context, run_id, POLICY).folder.read("rerun")
    assert rerun["weights_digest"] == tiny.attempts(context)[0].candidate_digest


def test_a_plan_made_anew_in_the_middle_of_a_step_keeps_the_order_of_the_rungs(tiny_context: Context) -> None:
    """Else an attempt of one method, and its certificate, would be about the candidate of another."""
    policy = replace(POLICY, cheapest_first=True)
    pair = tiny.same_block(tiny_context)
    run_id = tiny.plan_run(tiny_context, pair[0], policy=policy)
    work = tiny.workspace(tiny_context, run_id, policy)
    assert work.plan.rungs == ("retrain", "spare")  # without a spare that rung comes last
    advance(tiny_context, run_id, "unlearning")
    assert candidates.unlearn(work, 0) is None
    spares.train_spares(tiny_context, data.recipe_of(tiny_context), plans(tiny_context, pair[0]), nothing)
    tiny.workspace(tiny_context, run_id, policy).plan_anew()  # a stale bank was damaged
    advance(tiny_context, run_id, "auditing")
    assert judging.judge(tiny.workspace(tiny_context, run_id, policy), 0)
    (attempt,) = tiny.attempts(tiny_context)
    assert attempt.method == "retrain"
    assert attempt.candidate_digest != found(tiny_context, pair[0]).digest
    assert tiny.workspace(tiny_context, run_id, policy).folder.read("step-0")["n_backward"] > 0


def test_an_older_spare_that_never_knew_the_person_stays(tiny_context: Context, pair) -> None:
    """`destroy_older_than` goes by age, spares by whom they know."""
    spare = found(tiny_context, pair[0])
    run_id = tiny.plan_run(tiny_context, pair[0], policy=tiny.POLICY)
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN)
    tiny.finish(tiny_context, run_id)
    assert found(tiny_context, pair[1]).digest == spare.digest
    with pytest.raises(WeightsError):
        registry.load_checked(tiny_context, tiny.workspace(tiny_context, run_id).run.base_digest)


def test_the_command_says_the_price_and_trains_them(tiny_context: Context, tmp_path, monkeypatch) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(POLICY.to_dict()))
    settings = tiny_context.settings
    monkeypatch.setenv("EXPUNGE_HOME", str(settings.home))
    monkeypatch.setenv("EXPUNGE_RECIPE", settings.recipe)
    monkeypatch.setenv("EXPUNGE_JOBS", "1")
    monkeypatch.setenv("EXPUNGE_POLICY", str(file))
    person = tiny.people(tiny_context)[0]
    said = CliRunner().invoke(app, ["references", "build", person])
    assert said.exit_code == 0, said.output
    assert f"{POLICY.n_models + 1} models to train" in said.output
    assert "spares: one for each of 1 blocks" in said.output
    assert spares.count(tiny_context) == 1
