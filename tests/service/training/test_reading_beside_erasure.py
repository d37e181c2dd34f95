"""Whoever reads people's images while somebody is erased: nothing made from overwritten images counts, anywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from audit.studies.comparison import DO_NOTHING
from service.banks.blocks import blocks
from service.banks.build import build_bank, stores
from service.banks.store import BankStore
from service.erasure.completion import purge
from service.errors import DataChangedError
from service.launch import environment
from service.models import deployment
from service.studies.block_bias import Sizes, validate_own
from service.studies.experiments import Experiment, evaluate, store_of
from service.studies.forget_setup import Task, original_of, run_original, set_stage
from service.studies.tuning import Search, tune
from service.training.jobs import run_trial
from service.training.production import train_production
from service.training.spec import intact, open_images
from tests.service import tiny
from tests.waiting import PATIENCE_SECONDS, wait_until
from unlearning.errors import MethodError
from unlearning.faces import remove_subjects

MANY = 100_000  # models: nobody gets as far


def rows_in(folder):
    return sorted(folder.rglob("*.row"))


@pytest.fixture
def command(tiny_context):
    """Starts `expunge …` on the tiny home, in a process of its own."""
    started = []

    def start(*words, jobs=1):
        home = tiny_context.settings.home
        (home / "policy.json").write_text(json.dumps(replace(tiny.POLICY, n_models=MANY).to_dict()))
        changes = {"policy": str(home / "policy.json"), "jobs": jobs}
        env = environment(tiny_context.settings.model_copy(update=changes))
        with (home / "output").open("wb") as output:
            started.append(
                subprocess.Popen([sys.executable, "-m", "service.cli", *words], env=env, stdout=output, stderr=output)
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(PATIENCE_SECONDS)


def watch(process, folder, n_rows):
    """Wait until the command ended or keeps so many models."""
    wait_until(lambda: process.poll() is not None or len(rows_in(folder)) >= n_rows, f"{n_rows} models or the end")


@pytest.mark.slow
@pytest.mark.parametrize(("what", "jobs"), [("references", 1), ("references", 2), ("evaluate", 1)])
def test_a_purge_in_the_middle_ends_the_command_and_every_model_kept_is_of_whole_images(
    tiny_context, command, tmp_path, what, jobs
):
    settings = tiny_context.settings
    pair = tiny.same_block(tiny_context)
    erased = next(person for person in tiny.people(tiny_context) if person not in pair)
    run_id = tiny.deploy_run(tiny_context, erased)
    shutil.copytree(settings.data_folder, tmp_path / "whole")
    if what == "references":
        folder, plan = settings.banks_folder, tiny.plan_for(tiny_context, pair[0], absent=(erased,))
        process = command("references", "build", pair[0], jobs=jobs)
    else:
        stage = set_stage(tiny_context, [pair[0]])
        folder, plan = store_of(tiny_context, stage).folder, stage.plan
        process = command("evaluate", "finetune", "--person", pair[0], "--n-models", str(MANY), jobs=jobs)
    of_plan = folder / plan.key.digest
    watch(process, of_plan, 1)
    assert process.poll() is None, (settings.home / "output").read_text()

    purge(tiny.workspace(tiny_context, run_id))

    watch(process, of_plan, len(rows_in(of_plan)) + 3)
    ended = process.poll()
    process.kill()
    process.wait(PATIENCE_SECONDS)
    output = " ".join((settings.home / "output").read_text().split())
    images = replace(plan.spec.images, folder=tmp_path / "whole", cache=tmp_path / "packed")
    kept = BankStore(folder).find(plan.key, n_models=1)
    for seed, margins in zip(kept.seeds, kept.margins, strict=True):
        expected = run_trial(replace(plan.spec, images=images), int(seed)).margins
        np.testing.assert_array_equal(margins, expected, err_msg=f"model {seed} learned from other images")
    assert ended == 1, output
    assert output.endswith("Nothing made from changed data was kept; start again, with the data as they are.")
    assert "Traceback" not in output
    assert erased not in output
    again = tiny.plan_for(tiny_context, pair[0]) if what == "references" else set_stage(tiny_context, [pair[0]]).plan
    assert again.key == plan.key  # started again it goes on: the person had asked before


@pytest.fixture
def cast(tiny_context):
    """Somebody to forget, and somebody of another block who is erased."""
    pair = tiny.same_block(tiny_context)
    return pair[0], next(person for person in tiny.people(tiny_context) if person not in pair)


@pytest.fixture
def erase(tiny_context):
    """Erases people behind the reader's back: data, then columns, as the purge does and in its order."""

    def erase(*people):
        remove_subjects(tiny_context.settings.data_folder, people)
        for store in stores(tiny_context.settings):
            store.drop_subjects(tiny_context.keyring.block_hash(person) for person in people)

    return erase


def test_a_trial_of_images_that_were_overwritten_gives_nothing(tiny_context, cast, erase, tmp_path):
    spec = tiny.plan_for(tiny_context, cast[0]).spec
    faces = open_images(spec.images)
    erase(cast[1])
    assert not faces.images.any()
    with pytest.raises(DataChangedError, match="somebody was erased"):
        run_trial(spec, 0, tmp_path / "weights.safetensors")
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_removal_of_nobody_overwrites_the_pack_as_well(tiny_context, cast, erase):
    spec = tiny.plan_for(tiny_context, cast[0]).spec
    open_images(spec.images)
    erase("nobody")
    with pytest.raises(DataChangedError):
        run_trial(spec, 0)


def test_a_method_that_diverged_on_overwritten_images_did_not_diverge(tiny_context, cast, erase):
    images = tiny.plan_for(tiny_context, cast[0]).spec.images
    with pytest.raises(MethodError), intact(images):
        raise MethodError("diverged")
    reading = intact(images)
    reading.__enter__()
    erase(cast[1])
    diverged = MethodError("diverged")
    with pytest.raises(DataChangedError):
        reading.__exit__(MethodError, diverged, None)


def test_no_method_runs_on_an_original_of_overwritten_images(tiny_context, cast, erase):
    stage = set_stage(tiny_context, [cast[0]])
    task = Task(stage, DO_NOTHING, None, stage.plan.key)
    original_of.cache_clear()
    open_images(stage.plan.spec.images)
    erase(cast[1])
    for _ in range(2):  # also not on one that was kept
        with pytest.raises(DataChangedError):
            run_original(stage.origin, 0, 0, [task])
    assert original_of.cache_info().currsize == 0


def test_no_bank_is_begun_and_no_model_kept_by_a_plan_of_before(tiny_context, cast, erase, monkeypatch):
    """The models were whole, and the person's columns are gone: a builder that is late must not bring them back."""
    store, plan = (
        BankStore(tiny_context.settings.banks_folder),
        tiny.plan_for(tiny_context, *tiny.same_block(tiny_context)),
    )
    add = BankStore.add

    def late(*args, **kwargs):
        if not store.missing_seeds(plan.key, 1):
            erase(cast[0])
        return add(*args, **kwargs)

    monkeypatch.setattr(BankStore, "add", late)
    now = tiny_context.now()
    with pytest.raises(DataChangedError):
        build_bank(store, plan, 4, tiny_context.settings, lambda *_: None, now=now)
    (status,) = store.status(now=now)
    assert (status.n_models, status.n_subjects) == (1, 1)
    assert tiny_context.keyring.block_hash(cast[0]) not in status.subject_tags
    with pytest.raises(DataChangedError):
        build_bank(store, plan, 4, tiny_context.settings, lambda *_: None, now=now)
    store.discard(plan.key)
    with pytest.raises(DataChangedError):
        build_bank(store, plan, 4, tiny_context.settings, lambda *_: None, now=now)
    assert store.status(now=now) == ()


def test_an_evaluation_brings_no_columns_back(tiny_context, cast, erase):
    asked = Experiment(("finetune",), (cast[0],), n_models=8, n_experiments=2)
    done = []

    def tell(n, wanted):
        if n == wanted - 2 and not done:
            done.append(n)
            erase(cast[0])

    with pytest.raises(DataChangedError):
        evaluate(tiny_context, asked, on_progress=tell)
    assert done
    assert all(store.status(now=tiny_context.now()) == () for store in stores(tiny_context.settings))


def test_a_validation_counts_only_on_whole_images(tiny_context, cast, erase):
    def on_bank(number, n_banks):
        if number == 2:
            erase(cast[1])
        return lambda done, wanted: None

    with pytest.raises(DataChangedError):
        validate_own(tiny_context, Sizes(2, 8, 1), on_bank)


def test_a_search_counts_only_on_whole_images(tiny_context, cast, erase):
    pytest.importorskip("optuna")
    search = Search("finetune", ((cast[0],),), n_trials=2, n_models=4)
    told = []

    def on_trial(done, wanted, best):
        told.append(done)
        erase(cast[1])

    with pytest.raises(DataChangedError):
        tune(tiny_context, search, on_trial=on_trial)
    assert told == [0]


def test_a_production_model_of_overwritten_images_never_serves(tiny_context, cast, erase):
    before = deployment.pointer(tiny_context).committed_digest
    with pytest.raises(DataChangedError):
        train_production(tiny_context, seed=5, on_epoch=lambda *_: erase(cast[1]))
    assert deployment.pointer(tiny_context).committed_digest == before
    assert len(list(tiny_context.settings.models_folder.iterdir())) == 1


def test_nobody_comes_back_to_the_list_of_blocks(tiny_context, cast, erase):
    from service.banks.blocks import forget_from_blocks

    faces = open_images(tiny.plan_for(tiny_context, cast[0]).spec.images)
    tag = tiny_context.keyring.block_hash(cast[1])
    assert tag in blocks(tiny_context.settings, tiny_context.keyring, faces)
    erase(cast[1])
    forget_from_blocks(tiny_context.settings, [tag])
    with pytest.raises(DataChangedError):
        blocks(tiny_context.settings, tiny_context.keyring, faces)
    assert tag not in (tiny_context.settings.banks_folder / "blocks.json").read_text()
