"""`expunge compare` on a tiny home: resumable, complete, and a diverging method is told, not hidden."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from audit.policy import EXACT
from service.cli import app
from service.context import Context
from service.errors import InvalidInputError
from service.settings import Settings
from service.studies import comparison, forget_setup
from service.studies.comparison import Field, rounds
from service.studies.datasets import WORLDS, open_world
from service.training.data import pack_images, recipe_of
from service.training.jobs import release_processes
from service.training.spec import open_images
from tests.service.studies.test_experiments import RECIPE
from unlearning.errors import MethodError
from unlearning.faces.sources import synthetic
from unlearning.methods import METHODS
from unlearning.recipes import RECIPES


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    home = tmp_path_factory.mktemp("compare")
    (home / "recipe.json").write_text(json.dumps(RECIPE))
    settings = Settings(home=home, recipe=str(home / "recipe.json"), jobs=1, device="cpu", database_url="")
    synthetic.write_folder(settings.data_folder, n_subjects=30, images_per_subject=3, size=(16, 16), seed=1)
    context = Context.open(settings)
    yield context
    context.engine.dispose()
    release_processes()


@pytest.fixture(scope="module")
def field(context: Context) -> Field:
    people = list(open_images(pack_images(context.settings, recipe_of(context))).train_subjects())
    return Field(context, {"one": (people[0],), "two": (people[1], people[2])})


def test_rounds_double() -> None:
    assert list(rounds(128)) == [16, 32, 64, 128]
    assert list(rounds(40)) == [16, 32, 40]
    assert list(rounds(8)) == [8]


def test_every_method_in_every_cell_and_a_stopped_study_goes_on(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, int, int]] = []

    def stop(doing: str, done: int, wanted: int) -> None:
        if "reuse_n_n" in doing and done >= 8:
            raise KeyboardInterrupt

    ask: dict[str, Any] = {"methods": ("finetune", "random_mask"), "n_models": 8, "n_experiments": 2}
    with pytest.raises(KeyboardInterrupt):
        comparison.study([field], on_step=stop, **ask)
    trained: list[int] = []
    train = forget_setup.train
    monkeypatch.setattr(
        forget_setup, "train", lambda *args, seed, **kw: trained.append(seed) or train(*args, seed=seed, **kw)
    )
    done = comparison.study([field], on_step=lambda *step: seen.append(step), **ask)
    assert 0 < len(trained) < 8  # originals of some seeds were there; none of `reuse_n_1` was trained again
    assert seen[-1] == ("figures", 4, 4)
    for setup in ("reuse_n_1", "reuse_n_n"):
        assert {row.name for row in done.rows(setup)} == {"finetune", "random_mask", "retrain", "do_nothing"}
        assert all(row.n_cells == 2 for row in done.rows(setup))


def test_a_method_that_diverges_is_left_out_and_told(field: Field, monkeypatch: pytest.MonkeyPatch) -> None:
    unlearn = forget_setup.unlearn

    def diverge(name: str, *args: Any, **options: Any) -> Any:
        if name == "seif":
            raise MethodError("seif diverged: lower its learning rates.")
        return unlearn(name, *args, **options)

    monkeypatch.setattr(forget_setup, "unlearn", diverge)
    done = comparison.study([field], ("finetune", "seif"), n_models=8, n_experiments=2, setups=("reuse_n_1",))
    assert "seif" not in {row.name for row in done.rows("reuse_n_1")}
    assert all(cell.failed == {"seif": "seif diverged: lower its learning rates."} for cell in done.cells)


def test_nobody_is_tuned_on_and_reported() -> None:
    for world in WORLDS.values():
        tuned = {person for people in world.tuning for person in people}
        reported = {person for people in world.reported.values() for person in people}
        assert not tuned & reported
        assert world.recipe in RECIPES
    assert len(WORLDS["att"].reported) >= 4


def test_a_world_is_a_home_of_its_own(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, jobs=1, device="cpu", database_url="")
    world = open_world("synthetic", settings)
    again = open_world("synthetic", settings)
    assert world.settings.home == again.settings.home == tmp_path / "worlds" / "synthetic"
    assert not settings.data_folder.exists()
    faces = open_images(pack_images(world.settings, recipe_of(world)))
    (people,) = WORLDS["synthetic"].reported.values()
    assert len(people) / 200 == 0.02
    assert set(people) <= set(faces.train_subjects())
    for opened in (world, again):
        opened.engine.dispose()
    with pytest.raises(InvalidInputError, match="a world of att, synthetic"):
        open_world("moon", settings)


def test_the_command(context: Context, field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_HOME", str(context.settings.home))
    monkeypatch.setenv("EXPUNGE_RECIPE", context.settings.recipe)
    monkeypatch.setenv("EXPUNGE_JOBS", "1")
    forget = [word for people in field.forget_sets.values() for word in ("--forget", ",".join(people))]
    words = [
        "compare",
        "finetune",
        "random_mask",
        *forget,
        "--n-models",
        "10",
        "--n-n-models",
        "8",
        "--experiments",
        "2",
    ]
    result = CliRunner().invoke(app, [*words, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    cells = [cell["comparison"] for cell in json.loads((tmp_path / "comparison.json").read_text())["cells"]]
    assert {(cell["setup"], cell["n_models"]) for cell in cells} == {("reuse_n_1", 10), ("reuse_n_n", 8)}
    assert "| 1 | `" in result.output
    text = (tmp_path / "comparison.md").read_text() + (tmp_path / "comparison.json").read_text()
    assert not any(person in text for people in field.forget_sets.values() for person in people)


def test_by_default_every_method_is_compared() -> None:
    assert set(METHODS) - set(EXACT) == {name for name, method in METHODS.items() if not method.exact}
