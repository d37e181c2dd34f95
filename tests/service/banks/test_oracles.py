"""Oracles beside the reference bank: made ahead, read by the method, never taken for what judges."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from audit.proof.certificate import verify
from service.banks.build import plan_bank
from service.banks.oracles import FIRST_SEED, STATISTIC, build_oracles, n_asked_for, n_wanted, oracle_plan
from service.banks.refresh import rebuild
from service.banks.store import BankStore
from service.cli import app
from service.context import Context
from service.erasure import completion
from service.erasure.candidates import unlearn
from service.erasure.references import bank_plan, gather, oracle_bank, oracle_bank_plan, oracle_margins
from service.studies.experiments import Experiment, draw_oracles, evaluate, store_of, workload
from service.studies.forget_setup import set_stage
from service.training import data
from service.training.spec import open_images
from tests.service import tiny
from unlearning.recipes import load_recipe

N_ORACLES = 6
METHOD = "oracle_matching"
POLICY = replace(tiny.POLICY, ladder=(METHOD, "retrain"), cost_share_max=0.01)
STALE_POLICY = replace(POLICY, staleness_max=0.5)


@pytest.fixture
def context(tiny_context: Context, tmp_path: Path) -> Context:
    """A tiny home whose settings of the method ask for few oracles."""
    recipe = load_recipe(tiny_context.settings.recipe)
    found = {"settings": {"n_oracles": N_ORACLES, "epochs": 1.0}, "record": {"cost_share": 0.5}}
    tuned = tmp_path / "tuned.json"
    tuned.write_text(json.dumps({"tiny": {"recipe_digest": recipe.digest, "methods": {METHOD: found}}}))
    return replace(tiny_context, settings=tiny_context.settings.model_copy(update={"tuned": tuned}))


@pytest.fixture
def person(context: Context) -> str:
    """Somebody in another block than the last person of all; which people share a block depends on the home's keys."""
    pair, everybody = tiny.same_block(context), tiny.people(context)
    return next(one for one in everybody if (one in pair) != (everybody[-1] in pair))


@pytest.fixture
def run_id(context: Context, person: str) -> str:
    """A run with its plan, its references and its oracles."""
    run_id = tiny.claim_run(context, person, policy=POLICY)
    work = tiny.workspace(context, run_id, POLICY)
    work.make_plan()
    gather(work)
    return run_id


def test_how_many_are_asked_for(context: Context) -> None:
    assert n_wanted({"finetune": {}, METHOD: {"n_oracles": 7}}) == 7
    assert n_wanted({"finetune": {}}) == 0
    assert n_asked_for(context.settings, POLICY) == N_ORACLES
    assert n_asked_for(context.settings, tiny.POLICY) == 0


def test_oracles_are_gathered_with_the_references_and_told(
    context: Context, person: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tiny.workspace(context, tiny.claim_run(context, person, policy=POLICY), POLICY)
    work.make_plan()
    told = tiny.listen(monkeypatch)
    gather(work)
    oracles = [f"oracles {n}/{N_ORACLES}" for n in range(N_ORACLES + 1)]
    assert told == oracles + [f"reference models {n}/{POLICY.n_models}" for n in range(POLICY.n_models + 1)]


def test_none_are_made_where_no_method_reads_any(context: Context, person: str) -> None:
    work = tiny.workspace(context, tiny.claim_run(context, person))
    work.make_plan()
    gather(work)
    assert len(BankStore(context.settings.banks_folder).status(now=context.now())) == 1


def test_oracles_are_other_models_than_the_references(context: Context, run_id: str) -> None:
    work, store = tiny.workspace(context, run_id), BankStore(context.settings.banks_folder)
    judge = store.find(bank_plan(work).key, n_models=POLICY.n_models)
    oracle = store.find(oracle_bank_plan(work).key, n_models=N_ORACLES)
    assert judge is not None
    assert oracle is not None
    assert oracle.seeds.tolist() == list(range(FIRST_SEED, FIRST_SEED + N_ORACLES))
    assert not {row.tobytes() for row in oracle.margins} & {row.tobytes() for row in judge.margins}
    forgotten = oracle_margins(work)
    assert forgotten.shape == (N_ORACLES, tiny.N_IMAGES)


def test_a_run_that_lacks_its_oracles_says_so(context: Context, run_id: str) -> None:
    work = tiny.workspace(context, run_id)
    BankStore(context.settings.banks_folder).discard(oracle_bank_plan(work).key)
    with pytest.raises(FileNotFoundError, match="Expected 6 complete oracles"):
        oracle_margins(work)


def test_neither_is_taken_for_the_other_when_stale_ones_are_looked_for(context: Context, person: str) -> None:
    others = [one for one in tiny.people(context) if one != person]
    tiny.build(context, oracle_plan(tiny.plan_for(context, person)))
    tiny.file(context, others[-1])  # from now on an exact bank would be trained without this person
    recipe = data.recipe_of(context)
    images = data.images_in_service(context, recipe)
    absent = data.asked_to_go(context, open_images(images))
    asked = {"forget": {person}, "absent": absent, "n_models": POLICY.n_models, "staleness_max": 0.5}
    judged_by = plan_bank(context, recipe, images, **asked)
    assert judged_by.staleness.share == 0  # a new one, to be built
    told_by = plan_bank(context, recipe, images, **asked, statistic=STATISTIC)
    assert told_by.staleness.share > 0


OPENED: list[list[str]] = []  # lists that are being filled


def _note_opened(event: str, arguments: tuple[object, ...]) -> None:
    if OPENED and event == "open" and isinstance(arguments[0], str | Path):
        OPENED[-1].append(str(arguments[0]))


sys.addaudithook(_note_opened)  # cannot be taken off again; it does nothing while OPENED is empty


def test_unlearning_opens_the_oracles_and_never_the_bank_that_judges(context: Context, run_id: str) -> None:
    work = tiny.workspace(context, run_id, POLICY)
    OPENED.append([])
    try:
        unlearn(work, 0)
    finally:
        opened = OPENED.pop()
    banks = context.settings.banks_folder
    assert [path for path in opened if str(banks / oracle_bank_plan(work).key.digest) in path]
    assert not [path for path in opened if str(banks / bank_plan(work).key.digest) in path]


def test_a_person_s_oracles_go_with_the_person_and_the_certificate_names_them(context: Context, run_id: str) -> None:
    key = oracle_bank_plan(tiny.workspace(context, run_id)).key.digest
    store = BankStore(context.settings.banks_folder)
    assert not tiny.try_step(context, run_id, 0, POLICY)  # nothing is cheaper than retraining a model this small
    assert tiny.try_step(context, run_id, 1, POLICY)
    tiny.deploy(context, run_id)
    before = {status.key.digest: status.n_examples for status in store.status(now=context.now())}
    completion.purge(tiny.workspace(context, run_id))
    after = {status.key.digest: status.n_examples for status in store.status(now=context.now())}
    assert after.get(key, 0) == before[key] - tiny.N_IMAGES
    completion.complete(tiny.workspace(context, run_id))
    failed, erased = tiny.certificates(context)
    destroyed = verify(erased.envelope).statement["predicate"]["purge"]["destroyed"]
    assert destroyed["oracle columns"] == destroyed["reference columns"] == tiny.N_IMAGES
    procedure = verify(failed.envelope).statement["predicate"]["procedure"]
    assert procedure["method"] == METHOD
    assert procedure["settings"]["oracle_bank"] == key


def test_they_are_built_ahead_and_kept_ready(
    context: Context, person: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings, policy = context.settings, tmp_path / "policy.json"
    policy.write_text(json.dumps(POLICY.to_dict()))
    monkeypatch.setenv("EXPUNGE_HOME", str(settings.home))
    monkeypatch.setenv("EXPUNGE_RECIPE", settings.recipe)
    monkeypatch.setenv("EXPUNGE_TUNED", str(settings.tuned))
    monkeypatch.setenv("EXPUNGE_POLICY", str(policy))
    monkeypatch.setenv("EXPUNGE_JOBS", "1")
    monkeypatch.setenv("EXPUNGE_DEVICE", "cpu")
    done = CliRunner().invoke(app, ["references", "build", person])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert f"{4 + N_ORACLES} models to train" in said
    assert f"oracles, 1 bank: {N_ORACLES} models each" in said
    store, plan = BankStore(settings.banks_folder), tiny.plan_for(context, person)
    assert store.find(plan.key, n_models=4) is not None
    assert store.find(oracle_plan(plan).key, n_models=N_ORACLES) is not None
    store.discard(oracle_plan(plan).key)
    assert rebuild(context, POLICY, missing_too=False) == 0  # no reference bank
    assert store.find(oracle_plan(plan).key, n_models=N_ORACLES) is not None


def test_experiments_train_their_own(context: Context, person: str) -> None:
    asked = Experiment((METHOD,), (person,), n_models=8, n_experiments=2)
    stage = set_stage(context, asked.people)
    first = workload(context, asked, stage)
    comparison = evaluate(context, asked)
    assert {row.name for row in comparison.rows} >= {METHOD}
    assert first.n_trainings == 16 + N_ORACLES + 1
    assert workload(context, asked, stage).n_trainings == 0
    oracles = draw_oracles(context, stage, N_ORACLES, lambda done, wanted: None)
    references = store_of(context, stage).find(stage.plan.key, n_models=16)
    assert references is not None
    assert not {row.tobytes() for row in oracles} & {row.tobytes() for row in references.margins}
    assert np.isfinite(oracles).all()


@pytest.fixture
def stale(context: Context, person: str) -> str:
    """A run that is to be told and judged by stale banks, both complete."""
    ahead = tiny.plan_for(context, person)
    tiny.build(context, ahead)
    build_oracles(
        BankStore(context.settings.banks_folder), oracle_plan(ahead), N_ORACLES, context.settings,
        lambda done, wanted: None, now=context.now(),
    )  # fmt: skip
    run_id = tiny.claim_run(context, person, policy=STALE_POLICY)
    tiny.file(context, tiny.people(context)[-1])  # an exact bank would be trained without this person
    return run_id


def test_stale_oracles_that_an_open_run_names_stay(context: Context, stale: str) -> None:
    work = tiny.workspace(context, stale, STALE_POLICY)
    plan = work.make_plan()
    assert oracle_bank_plan(work).staleness.share > 0
    rebuild(context, STALE_POLICY, missing_too=False)
    assert oracle_bank(work) is not None
    assert unlearn(tiny.workspace(context, stale, STALE_POLICY), 0) is None
    assert tiny.workspace(context, stale).plan == plan


def test_a_run_whose_stale_oracles_are_gone_all_the_same_plans_again(context: Context, stale: str) -> None:
    work = tiny.workspace(context, stale, STALE_POLICY)
    work.make_plan()
    before = oracle_bank_plan(work).key
    gather(work)
    BankStore(context.settings.banks_folder).discard(before)
    assert unlearn(tiny.workspace(context, stale, STALE_POLICY), 0) is None
    planned = oracle_bank_plan(tiny.workspace(context, stale))
    assert planned.key != before
    assert planned.staleness.share == 0
