"""Evaluations on a tiny home: forty drawn people, images of 16 by 16, a model trains in a tenth of a second."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from audit.studies.comparison import DO_NOTHING, RETRAIN, render_html, write
from service.banks.build import stores
from service.cli import app
from service.context import Context
from service.errors import ConflictError, InvalidInputError
from service.settings import Settings
from service.store.engine import session
from service.store.tables import Tombstone
from service.studies import experiments, forget_setup
from service.studies.experiments import (
    Experiment,
    draw,
    draw_candidates,
    draw_references,
    draw_together,
    evaluate,
    store_of,
    workload,
)
from service.studies.forget_setup import Stage, Task, original_of, run_original, set_stage
from service.training.jobs import release_processes
from unlearning.errors import MethodError
from unlearning.faces.sources import synthetic

RECIPE = {
    "name": "tiny", "architecture": "small_resnet", "image_size": [16, 16], "channels": 3, "width": 4, "epochs": 3,
    "batch_size": 32, "learning_rate": 0.1, "flip": True, "dtype": "float32",
}  # fmt: skip


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """One home for all tests: what one draws the next finds, so most are quick."""
    home = tmp_path_factory.mktemp("evaluate")
    (home / "recipe.json").write_text(json.dumps(RECIPE))
    settings = Settings(home=home, recipe=str(home / "recipe.json"), jobs=1, device="cpu", database_url="")
    synthetic.write_folder(settings.data_folder, n_subjects=40, images_per_subject=3, size=(16, 16), seed=1)
    context = Context.open(settings)
    yield context
    context.engine.dispose()
    release_processes()


@pytest.fixture(scope="module")
def people(context: Context) -> list[str]:
    """Training people, the test's cast."""
    from service.training.data import pack_images, recipe_of
    from service.training.spec import open_images

    return list(open_images(pack_images(context.settings, recipe_of(context))).train_subjects())


def experiment(people: list[str], **changes: Any) -> Experiment:
    values = {"methods": ("finetune", "random_mask"), "people": people[:2], "n_models": 8, "n_experiments": 2}
    return Experiment(**{**values, **changes})


def quiet(done: int, wanted: int) -> None:
    pass


def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Seeds of the originals trained from here on."""
    seeds: list[int] = []
    train = forget_setup.train
    monkeypatch.setattr(
        forget_setup, "train", lambda *args, seed, **kw: seeds.append(seed) or train(*args, seed=seed, **kw)
    )
    original_of.cache_clear()
    return seeds


@pytest.mark.parametrize("setup", ["reuse_n_1", "reuse_n_n", "full"])
def test_every_setup_gives_every_figure(context: Context, people: list[str], setup: Any, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    asked = experiment(people, setup=setup)
    comparison = evaluate(context, asked, on_progress=lambda *done: seen.append(done))
    assert {row.name for row in comparison.rows} == {"finetune", "random_mask", RETRAIN, DO_NOTHING}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    n = 8 * (2 if setup == "full" else 1)
    assert seen[-1] == (5 * n, 5 * n)
    for row in comparison.rows:
        e = row.experiments
        assert (e.setup, e.n_models) == (setup, 8 if setup == "full" else 4)
        assert 0 <= e.forgetting.value <= 1
        assert row.rejected.low <= row.rejected.value <= row.rejected.high
        assert (row.cost_share is None) == (row.name == DO_NOTHING)
    page, data = write(comparison, tmp_path)
    figures = json.loads(data.read_text())
    assert [row["name"] for row in figures["rows"]] == [row.name for row in comparison.rows]
    text = page.read_text()
    assert "://" not in text
    assert "<script" not in text
    for person in people[:2]:  # a page in somebody's folder outlives the person's erasure
        assert person not in text
        assert person not in data.read_text()


def test_a_second_evaluation_draws_nothing(
    context: Context, people: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = experiment(people)
    first = evaluate(context, asked)
    seeds = trained(monkeypatch)
    stage = set_stage(context, asked.people)
    assert workload(context, asked, stage).sentence() == "All 40 models are here already."
    second = evaluate(context, asked)
    assert not seeds
    assert second.to_dict() == {**first.to_dict(), "created_at": second.to_dict()["created_at"]}


def test_another_method_costs_only_its_own_runs(context: Context, people: list[str]) -> None:
    evaluate(context, experiment(people))
    more = experiment(people, methods=("finetune", "random_mask", "gradient_ascent"))
    load = workload(context, more, set_stage(context, more.people))
    assert (load.n_trainings, load.n_runs, load.n_there) == (1, 8, 40)
    assert load.sentence() == (
        "1 model to train and 8 runs of methods, the trainings alone less than a minute of one core; 40 models are "
        "here already."
    )


def test_a_killed_evaluation_goes_on(context: Context, people: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = experiment(people[2:], methods=("finetune",), setup="reuse_n_n")
    stage = set_stage(context, asked.people)

    def die(done: int, wanted: int) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_candidates(context, asked, stage, die)
    seeds = trained(monkeypatch)
    banks = draw_candidates(context, asked, stage, quiet)
    assert len(seeds) == 5  # three of eight originals had been judged, with two rows each
    assert all(len(bank.margins) == 8 for bank in banks.values())


def test_fewer_models_than_a_stopped_evaluation_wanted(context: Context, people: list[str]) -> None:
    stage = set_stage(context, people[8:9])

    def die(done: int, wanted: int) -> None:
        if done >= 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_references(context, stage, 16, die)
    assert len(draw_references(context, stage, 8, quiet).margins) == 9


def test_full_begins_with_the_models_of_reuse_n_n(context: Context, people: list[str]) -> None:
    stage = set_stage(context, people[:2])
    pools = [
        draw(context, experiment(people, setup=setup), stage, quiet)[1]["finetune"].pool
        for setup in ("reuse_n_n", "full")
    ]
    assert pools[0].margins.shape == (1, 8, 6)
    assert pools[1].margins.shape == (2, 8, 6)
    np.testing.assert_array_equal(pools[0].margins[0], pools[1].margins[0])


def test_one_original_or_one_each(context: Context, people: list[str]) -> None:
    stage = set_stage(context, people[:2])
    _, one = draw(context, experiment(people), stage, quiet)
    _, each = draw(context, experiment(people, setup="reuse_n_n"), stage, quiet)
    assert np.ptp(one[DO_NOTHING].pool.margins, axis=1).max() == 0
    assert np.ptp(each[DO_NOTHING].pool.margins, axis=1).min() > 0


def test_references_and_the_retrain_anchor_share_no_model(context: Context, people: list[str]) -> None:
    stage = set_stage(context, people[:2])
    retrained, candidates = draw(context, experiment(people), stage, quiet)
    rows = np.concatenate([retrained.pool.margins[0], candidates[RETRAIN].pool.margins[0]])
    assert len(np.unique(rows, axis=0)) == 16


def test_a_run_is_the_same_in_any_company(context: Context, people: list[str]) -> None:
    stage = set_stage(context, people[:2])
    tasks = [
        Task(stage, name, experiments.settings_for(name, stage.plan.spec.recipe), stage.plan.key)
        for name in ("finetune", "random_mask")
    ]
    both = run_original(stage.origin, 0, 3, tasks)
    original_of.cache_clear()
    alone = run_original(stage.origin, 0, 3, tasks[1:])
    np.testing.assert_array_equal(both[1][1].margins, alone[0][1].margins)


def test_forget_sets_share_their_originals(
    context: Context, people: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [
        (one, set_stage(context, one.people))
        for one in (experiment(people[n:], setup="reuse_n_n", methods=("gradient_ascent",)) for n in (10, 12))
    ]
    seeds = trained(monkeypatch)
    together = draw_together(context, asked, quiet)
    assert len(seeds) == 8
    alone = draw_candidates(context, *asked[1], quiet)
    assert len(seeds) == 8
    np.testing.assert_array_equal(together[1]["gradient_ascent"].margins, alone["gradient_ascent"].margins)


def test_no_weights_on_disk(context: Context, people: list[str]) -> None:
    evaluate(context, experiment(people))
    files = [path for path in context.settings.evaluations_folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".row", ".lock", ""}
    assert max(path.stat().st_size for path in files) < 10_000
    assert not any(person in str(path) for path in files for person in people[:2])


def test_stages_differ_by_forget_set_and_are_hashed_by_digest(context: Context, people: list[str]) -> None:
    one, other = set_stage(context, people[:2]), set_stage(context, people[:1])
    assert one.digest != other.digest
    again = Stage(one.digest, other.plan, other.origin)
    assert (hash(again), again) == (hash(one), one)


def test_who_asked_to_be_erased_is_refused_and_in_no_model(context: Context, people: list[str]) -> None:
    before = set_stage(context, people[:1])
    hashed = context.keyring.subject_hash(people[-1])
    with session(context.engine) as s:
        s.add(Tombstone(subject_hash=hashed, created_at=context.now()))
        s.commit()
    try:
        with pytest.raises(ConflictError, match="1 of those named asked to be erased"):
            set_stage(context, people[-1:])
        stage = set_stage(context, people[:1])
        assert stage.digest != before.digest
        assert len(stage.origin.everybody) == len(before.origin.everybody) - 3
        assert len(stage.plan.spec.retain) == len(before.plan.spec.retain) - 3
    finally:
        with session(context.engine) as s:
            s.delete(s.get(Tombstone, hashed))
            s.commit()


def test_an_erased_person_s_columns_can_be_dropped(context: Context, people: list[str]) -> None:
    asked = experiment(people[4:], methods=())
    stage = set_stage(context, asked.people)
    draw_candidates(context, asked, stage, quiet)
    tag = context.keyring.block_hash(people[4])
    store = store_of(context, stage)
    assert any(store.folder == found.folder for found in stores(context.settings))
    n_dropped = sum(found.drop_subject(tag) for found in stores(context.settings))
    assert n_dropped == 3
    (status,) = store.status(now=context.now())
    assert status.n_examples == 3


def test_an_experiment_that_cannot_be_done_is_refused(context: Context, people: list[str]) -> None:
    with pytest.raises(MethodError, match="Unknown method 'hope'"):
        experiment(people, methods=("hope",))
    with pytest.raises(InvalidInputError, match="but 1 of those named are not"):
        set_stage(context, [*people[:1], "nobody"])
    with pytest.raises(InvalidInputError, match="at least one person"):
        experiment([])
    with pytest.raises(InvalidInputError, match="at least 8 models"):
        experiment(people, n_models=4)
    with pytest.raises(InvalidInputError, match="setup to be one of"):
        experiment(people, setup="reuse")


def test_the_workload_says_what_it_will_cost(context: Context, people: list[str]) -> None:
    asked = experiment(people[6:], setup="full", n_models=64, n_experiments=10)
    load = workload(context, asked, set_stage(context, asked.people))
    assert load.n_trainings == 2 * 640 + 640
    assert load.sentence() == "1920 models to train and 1920 runs of methods."


def test_the_command(context: Context, people: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_HOME", str(context.settings.home))
    monkeypatch.setenv("EXPUNGE_RECIPE", context.settings.recipe)
    monkeypatch.setenv("EXPUNGE_JOBS", "1")
    people_options = [word for person in people[:2] for word in ("--person", person)]
    result = CliRunner().invoke(
        app,
        ["evaluate", "finetune", *people_options, "--n-models", "8", "--experiments", "2", "--out", str(tmp_path)],
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "evaluation.html").exists()
    assert json.loads((tmp_path / "evaluation.json").read_text())["setup"] == "reuse_n_1"
    assert "do_nothing" in result.output


def test_a_page_without_methods_still_says_what_the_scale_means(context: Context, people: list[str]) -> None:
    text = render_html(evaluate(context, experiment(people, methods=(), n_models=8)))
    assert "No method was compared" in text
