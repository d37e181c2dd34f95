"""The bank of models trained with everybody: whom it speaks of, what an erasure leaves of it, what audits read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from service.banks.build import plan_exact_bank
from service.banks.file_format import FEATURES, IN
from service.banks.originals import FIRST_SEED, N_ORIGINALS, build_originals, find_originals, originals_plan
from service.banks.refresh import EVERYBODY, rebuild
from service.banks.store import BankStore
from service.cli import app
from service.context import Context
from service.erasure import judging
from service.erasure.references import originals
from service.training import data
from service.training.spec import open_images
from tests.service import tiny
from tests.service.banks.test_refresh import erase
from unlearning.faces.views import VIEWS

N_MODELS = 4
POLICY = replace(tiny.POLICY, staleness_max=0.25)


@pytest.fixture
def built(tiny_context: Context) -> Context:
    """A home with a small bank of originals."""
    recipe = data.recipe_of(tiny_context)
    plan = originals_plan(tiny_context, recipe, data.images_in_service(tiny_context, recipe), ())
    store = BankStore(tiny_context.settings.banks_folder)
    build_originals(store, plan, N_MODELS, tiny_context.settings, lambda done, wanted: None, now=tiny_context.now())
    return tiny_context


def found(context: Context, person: str, *others: str):
    recipe = data.recipe_of(context)
    images = data.images_in_service(context, recipe)
    forget = open_images(images).where(split="train", subjects={person})
    return find_originals(context, recipe, images, forget, {person, *others})


def test_it_speaks_for_everybody_it_learned_from(built: Context) -> None:
    person, other = tiny.people(built)[:2]
    key, staleness = found(built, person, other)
    assert (staleness.n_learned, staleness.n_learned_gone) == (40, 2)  # both wait to be erased
    bank = BankStore(built.settings.banks_folder).find(key, n_models=N_MODELS)
    assert bank.views.shape == (N_MODELS, len(VIEWS), 40 * tiny.N_IMAGES)
    assert bank.seeds.tolist() == list(range(FIRST_SEED, FIRST_SEED + N_MODELS))
    recipe = data.recipe_of(built)
    everybody = plan_exact_bank(built, recipe, data.images_in_service(built, recipe), set(), set())
    assert key.statistic == IN != everybody.key.statistic
    assert key.training_digest == everybody.key.training_digest


def test_it_is_no_reference_bank_and_no_reference_bank_is_one(built: Context) -> None:
    """A block of one person: without that person the roster of its references is the one that is asked for."""
    person = tiny.people(built)[0]
    recipe = data.recipe_of(built)
    images = data.images_in_service(built, recipe)
    store = BankStore(built.settings.banks_folder)
    store.discard(originals_plan(built, recipe, images, ()).key)
    alone = plan_exact_bank(built, recipe, images, {person}, set())
    tiny.build(built, alone)
    assert found(built, person) is None


def test_an_erasure_takes_the_columns_and_leaves_the_bank_for_the_others(built: Context) -> None:
    gone, other = tiny.people(built)[:2]
    store, tag = BankStore(built.settings.banks_folder), built.keyring.block_hash(gone)
    assert store.count_columns([tag]) == {(tag, IN): tiny.N_IMAGES, (tag, FEATURES): tiny.N_IMAGES}
    erase(built, gone)
    assert not store.count_columns([tag])
    _, staleness = found(built, other)
    assert staleness.n_learned_gone == 2


def test_it_is_trained_anew_when_one_more_erasure_would_make_it_useless_and_not_before(
    tiny_context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []

    def on_block(block: str, number: int, n_blocks: int):
        trained.append(block)
        return lambda done, wanted: None

    monkeypatch.setattr("service.banks.refresh.N_ORIGINALS", N_MODELS)
    recipe, settings = data.recipe_of(tiny_context), tiny_context.settings
    store = BankStore(settings.banks_folder)
    assert rebuild(tiny_context, POLICY, missing_too=False, on_block=on_block) == 0  # nobody built one
    plan = originals_plan(tiny_context, recipe, data.images_in_service(tiny_context, recipe), ())
    build_originals(store, plan, N_MODELS, settings, lambda done, wanted: None, now=tiny_context.now())
    people = tiny.people(tiny_context)
    erase(tiny_context, *people[:9])
    assert rebuild(tiny_context, POLICY, missing_too=False, on_block=on_block) == 0
    erase(tiny_context, people[9])  # ten of forty: one more is over a quarter
    assert rebuild(tiny_context, POLICY, missing_too=False, on_block=on_block) == 1
    assert trained == [EVERYBODY]
    (status,) = [status for status in store.status(now=tiny_context.now()) if status.key.statistic == IN]
    assert (status.n_models, status.staleness.n_learned_gone) == (N_MODELS, 0)  # and the older bank is gone


def test_an_audit_reads_how_much_was_learned_and_the_certificate_says_it(built: Context) -> None:
    person = tiny.people(built)[0]
    for other in tiny.people(built)[2:12:2]:
        tiny.build(built, tiny.plan_for(built, other))
    run_id = tiny.plan_run(built, person)
    work = tiny.workspace(built, run_id)
    assert work.plan.originals["key"]["statistic"] == IN
    assert originals(work) is not None
    for step in (tiny.FINETUNE, tiny.RETRAIN):
        tiny.try_step(built, run_id, step)
    figures = tiny.attempts(built)[-1].figures["gate"]
    assert (figures["n_originals"], figures["n_models"], figures["n_views"]) == (N_MODELS, tiny.POLICY.n_models, 10)
    assert 0 <= figures["power"] <= 1
    assert figures["degrees_of_freedom"] > tiny.POLICY.n_models - 1  # the spread of other blocks counts


def test_the_audit_s_views_are_of_the_candidate_the_references_and_the_originals(
    built: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, true = [], judging.evaluate

    def tell(evidence, policy, **options):
        asked.append(evidence)
        return true(evidence, policy, **options)

    monkeypatch.setattr(judging, "evaluate", tell)
    person = tiny.people(built)[0]
    run_id = tiny.plan_run(built, person)
    tiny.try_step(built, run_id, tiny.RETRAIN)
    (evidence,) = asked
    views = evidence.views
    assert views.deployed.shape == (10, tiny.N_IMAGES)
    np.testing.assert_array_equal(views.deployed[0], evidence.deployed)
    np.testing.assert_array_equal(views.retrained[:, 0], evidence.retrained)
    assert views.originals.shape == (N_MODELS, 10, tiny.N_IMAGES)
    assert views.pooled is None  # no other block has a bank
    # a model that learned from the person is surer of them than models that did not
    assert views.originals[:, 0].mean() > views.retrained[:, 0].mean()


def test_build_without_names_says_the_price_and_trains_originals_too(
    tiny_context: Context, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = tiny_context.settings
    for name, value in (("HOME", settings.home), ("RECIPE", settings.recipe), ("JOBS", 1), ("DEVICE", "cpu")):
        monkeypatch.setenv(f"EXPUNGE_{name}", str(value))
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(tiny.POLICY.to_dict()))
    monkeypatch.setenv("EXPUNGE_POLICY", str(policy))
    done = CliRunner().invoke(app, ["references", "build"])
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert f"{20 * tiny.POLICY.n_models + N_ORIGINALS} models to train" in said
    assert f"originals, trained with everybody: {N_ORIGINALS} models" in said
    again = " ".join(CliRunner().invoke(app, ["references", "build"]).output.split())
    assert "0 models to train." in again
