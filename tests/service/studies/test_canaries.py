"""Canaries on a tiny home: what the gate says of them, what is kept, and what a killed command goes on with.

One recipe learns them by heart; the other, of three epochs, learns nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from audit.proof.qualification import remarks
from service.banks.qualifications import read_record
from service.context import Context
from service.errors import InvalidInputError
from service.settings import Settings
from service.store.engine import reading
from service.studies import canaries as study
from service.studies.canaries import N_ORIGINALS, N_REFERENCES, N_RETRAINED, RUNS_EACH, judge, plant, workload
from service.studies.forget_setup import set_stage
from service.studies.qualification import prepare, qualify
from service.training.jobs import release_processes
from tests.service.studies.test_experiments import RECIPE
from tests.service.studies.test_qualification import asked, leaf, rows, training_people
from unlearning.errors import MethodError
from unlearning.faces.sources import synthetic

BY_HEART = {**RECIPE, "name": "by-heart", "width": 8, "epochs": 30, "flip": False}


def home_of(folder: Path, recipe: dict[str, Any]) -> Context:
    folder.mkdir()
    (folder / "recipe.json").write_text(json.dumps(recipe))
    settings = Settings(home=folder, recipe=str(folder / "recipe.json"), jobs=1, device="cpu", database_url="")
    synthetic.write_folder(settings.data_folder, n_subjects=20, images_per_subject=4, size=(16, 16), seed=1)
    return Context.open(settings)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """A home whose models learn the canaries."""
    context = home_of(tmp_path_factory.mktemp("canaries") / "home", BY_HEART)
    yield context
    context.engine.dispose()
    release_processes()


@pytest.fixture
def planted(context: Context) -> study.Planted:
    return plant(set_stage(context, training_people(context)[:1]), 4)


def quiet(done: int, wanted: int) -> None:
    pass


def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the models trained from here on."""
    seeds: list[int] = []
    train = study.train
    monkeypatch.setattr(study, "train", lambda *args, seed, **kw: seeds.append(seed) or train(*args, seed=seed, **kw))
    return seeds


def content(folder: Path) -> dict[str, str]:
    """Digest of every file."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_killed_self_test_goes_on_and_leaves_nothing_of_the_canaries(
    context: Context, planted: study.Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was done before the kill is not done again, and an audit that sees says so: who forgot nothing is rejected,
    who was retrained passes."""
    before, seeds = content(context.settings.data_folder), trained(monkeypatch)

    def die(done: int, wanted: int) -> None:
        if done == wanted - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge(context, planted, ["finetune"], die)
    n_without = N_REFERENCES + N_RETRAINED
    assert len(seeds) == n_without + N_ORIGINALS - 2
    left = workload(context, planted, ["finetune"])
    assert (left.n_trainings, left.n_runs) == (2, {"finetune": 2 * RUNS_EACH})
    assert left.n_there == n_without + (1 + RUNS_EACH) * (N_ORIGINALS - 2)

    told: list[tuple[int, int]] = []
    found = judge(context, planted, ["finetune"], lambda *step: told.append(step))
    assert len(seeds) == n_without + N_ORIGINALS
    assert told[0] == (n_without + N_ORIGINALS - 2, n_without + N_ORIGINALS)
    assert told[-1] == (n_without + N_ORIGINALS, n_without + N_ORIGINALS)
    assert found.objection == ""
    assert found.nothing.n == N_ORIGINALS * 4
    assert found.nothing.share.value > 0.75
    assert found.retrained.share.value <= 0.25
    assert found.methods["finetune"].n == N_ORIGINALS * RUNS_EACH * 4
    assert min(found.learned) > 1
    again = judge(context, planted, ["finetune"], quiet)
    assert again == found
    assert len(seeds) == n_without + N_ORIGINALS
    assert workload(context, planted, ["finetune"]).n_trainings == 0

    assert content(context.settings.data_folder) == before
    pixels = [image.tobytes() for image in planted.images]
    for path in context.settings.home.rglob("*"):
        if path.is_file():
            kept = path.read_bytes()
            assert not any(image in kept for image in pixels)
    assert len(list(context.settings.home.rglob("*.safetensors"))) == 0


def test_a_further_method_makes_only_its_own_runs(
    context: Context, planted: study.Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(context, planted, ["finetune"], quiet)
    seeds = trained(monkeypatch)
    left = workload(context, planted, ["finetune", "random_mask"])
    assert (left.n_trainings, left.n_runs) == (N_ORIGINALS, {"finetune": 0, "random_mask": N_ORIGINALS * RUNS_EACH})
    found = judge(context, planted, ["finetune", "random_mask"], quiet)
    assert len(seeds) == N_ORIGINALS
    assert set(found.methods) == {"finetune", "random_mask"}


def test_a_method_that_reads_oracles_gets_some_of_its_own(
    context: Context, planted: study.Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge(context, planted, ["finetune"], quiet)
    seeds = trained(monkeypatch)
    found = judge(context, planted, ["oracle_matching"], quiet)
    oracles = [seed for seed in seeds if seed < study._ORIGINAL_SEEDS]
    assert len(oracles) >= 1
    assert min(oracles) >= N_REFERENCES + N_RETRAINED
    assert found.methods["oracle_matching"].n == N_ORIGINALS * RUNS_EACH * 4
    assert found.retrained.n == N_RETRAINED * 4


def test_a_method_that_diverges_has_no_share(
    context: Context, planted: study.Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlearn(*args: Any, **how: Any) -> Any:
        raise MethodError("seif diverged: weights that are not numbers; lower its learning rate.")

    monkeypatch.setattr(study, "unlearn", unlearn)
    assert judge(context, planted, ["seif"], quiet).methods == {}


def test_canaries_are_those_of_data_and_recipe(context: Context, planted: study.Planted) -> None:
    again = plant(set_stage(context, training_people(context)[1:2]), 4)
    assert again == planted
    np.testing.assert_array_equal(again.images, planted.images)
    np.testing.assert_array_equal(again.labels, planted.labels)
    assert planted.images.shape == (4 * 4, 16, 16, 3)
    assert plant(set_stage(context, training_people(context)[:1]), 3) != planted


def test_a_grey_recipe_gets_grey_canaries(tmp_path: Path) -> None:
    context = home_of(tmp_path / "home", {**BY_HEART, "channels": 1})
    found = plant(set_stage(context, training_people(context)[:1]), 2)
    assert found.images.shape == (8, 16, 16, 1)
    context.engine.dispose()


def test_a_qualification_has_them_in_its_record(context: Context) -> None:
    prepared = prepare(context, asked("finetune", n_canaries=4))
    assert leaf(context, rows(context)[-1].lot_log_index)["n_canaries"] == 4
    (result,) = qualify(context, prepared)
    assert result.qualification.canaries is not None
    assert result.qualification.canaries.objection == ""
    with reading(context.engine) as s:
        predicate = read_record(context, s, rows(context)[-1])
    assert predicate is not None
    shown = predicate["canaries"]
    assert (shown["n_canaries"], shown["objection"]) == (4, "")
    assert list(shown["methods"]) == ["finetune"]
    told = " ".join(remarks(predicate))
    assert f"{shown['nothing']['n_rejected']} of 12" in told
    assert "came back" in told
    (lot,) = prepare(context, asked("finetune", n_canaries=2)).lots
    assert lot.is_new


def test_where_the_audit_is_blind_nothing_else_is_made_and_no_method_qualifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = home_of(tmp_path / "home", RECIPE)
    prepared = prepare(context, asked("finetune", "seif", n_canaries=4))
    told: list[str] = []
    results = qualify(context, prepared, on_step=lambda doing, done, wanted: told.append(doing))
    assert set(told) == {"canaries"}
    for result, row in zip(results, rows(context), strict=True):
        assert not result.qualification.qualified
        assert result.qualification.statement.startswith("The audit is blind here")
        assert row.passed is False
        assert row.reason == result.qualification.statement
        with reading(context.engine) as s:
            predicate = read_record(context, s, row)
        assert predicate is not None
        assert predicate["canaries"]["objection"] == predicate["statement"]
        assert predicate["training_seconds"] is None
    context.engine.dispose()


@pytest.mark.parametrize("n", [-1, 101])
def test_how_many_canaries_there_may_be(n: int) -> None:
    with pytest.raises(InvalidInputError, match=f"from 0 to 100 canaries, 4 is usual, got {n}"):
        asked(n_canaries=n)


def test_the_lot_is_of_its_canaries(context: Context) -> None:
    (first,) = prepare(context, asked("finetune", n_canaries=5)).lots
    assert prepare(context, asked("finetune", n_canaries=5)).lots == (replace(first, is_new=False),)
