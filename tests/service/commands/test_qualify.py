"""`expunge qualify` and what `expunge methods` then says, on a tiny home."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from audit.qualification import Bars
from service.banks.qualifications import count_subjects
from service.cli import app
from service.commands.screen import console
from service.context import Context
from service.settings import Settings
from service.training.data import recipe_of
from service.training.jobs import release_processes
from tests.service.qualified import write_qualification
from tests.service.studies.test_experiments import RECIPE
from tests.service.studies.test_qualification import HARD, LAX
from unlearning.faces.sources import synthetic


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("qualify-command") / "home"
    home.mkdir()
    (home / "recipe.json").write_text(json.dumps(RECIPE))
    for policy in (LAX, HARD):
        (home / f"{policy.name}.json").write_text(json.dumps(asdict(policy)))
    folder = Settings(home=home).data_folder
    synthetic.write_folder(folder, n_subjects=12, images_per_subject=3, size=(16, 16), seed=1)
    return home


@pytest.fixture
def home(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "home"
    shutil.copytree(template, home)
    monkeypatch.setenv("EXPUNGE_HOME", str(home))
    monkeypatch.setenv("EXPUNGE_RECIPE", str(home / "recipe.json"))
    monkeypatch.setenv("EXPUNGE_JOBS", "1")
    monkeypatch.setenv("EXPUNGE_DEVICE", "cpu")
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", "")
    monkeypatch.setenv("EXPUNGE_POLICY", str(home / "lax.json"))
    monkeypatch.setattr(console, "width", 200)  # whatever stands for a terminal here
    yield home
    release_processes()


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def qualify(*words: str) -> Result:
    return run("qualify", *words, "--probes", "3", "--models", "8", "--canaries", "0")


def methods() -> dict[str, Any]:
    return {entry["name"]: entry["qualification"] for entry in json.loads(run("methods", "--json").output)}


def test_from_nothing_to_a_qualified_method(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert methods()["finetune"] is None  # no database yet
    assert not (home / "expunge.db").exists()
    monkeypatch.setenv("EXPUNGE_POLICY", str(home / "hard.json"))
    failed = qualify("finetune")
    assert failed.exit_code == 1, failed.output
    lines = failed.output.splitlines()
    assert lines[0] == (
        "At most 33 trainings' worth: 3 probe subjects, 8 retrained models of each, 8 runs of each method on each; by "
        "the bars of the policy hard."
    )
    assert lines[1].startswith("finetune: lot number 1 for this method and these data, drawn now: 3 of ")
    assert lines[2].startswith("33 models to train and 24 runs of methods, with relearning (")
    assert "Relearning: taught half of the images again, " in failed.output
    assert "No canaries were planted." in failed.output
    assert "finetune is NOT qualified. 0 of 3 probe subjects passed" in failed.output
    assert "finetune: features, and retained subjects" in failed.output
    assert methods()["finetune"]["sentence"].startswith("finetune failed its qualification on ")
    assert methods()["finetune"]["valid"] is False
    assert methods()["retrain"] is None
    assert methods()["seif"]["sentence"] == "seif was never qualified; run `expunge qualify seif`."
    table = run("methods").output
    assert "finetune failed its qualification on" in table
    assert "seif was never qualified" not in table
    assert "needs none" in table

    again = qualify("finetune", "--json")
    (plain,) = json.loads(again.output)
    assert plain["lot_number"] == 2
    assert plain["qualified"] is False
    record = json.loads(Path(plain["record"]).read_text())
    assert all(probe["figures"]["exposed"]["n_runs"] == 8 for probe in plain["probes"])
    assert record["log"]["index"] == plain["log_index"]
    for name in {row.split(",")[1] for row in (home / "data" / "metadata.csv").read_text().splitlines()[1:]}:
        assert name not in failed.output + again.output + Path(plain["record"]).read_text()
        assert name not in plain["record"]


def test_a_qualified_method_says_until_when(home: Path) -> None:
    context = Context.open(Settings())
    write_qualification(
        context, method="finetune", recipe=recipe_of(context), bars=Bars.of(LAX), n_subjects=count_subjects(context)
    )
    context.engine.dispose()
    found = methods()["finetune"]
    assert found["valid"] is True
    assert found["sentence"] == f"Qualified until {found['until'][:10]}: All 3 of 3."
    assert f"until {found['until'][:10]}" in run("methods").output
    assert found["remarks"] == [  # as before there were any
        "Relearning was not measured.", "No canaries were planted.",
        "Features: not measured. Retained subjects: not measured.",
    ]  # fmt: skip
    for sentence in (found["sentence"], *found["remarks"]):
        assert sentence in run("methods", "finetune").output


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("hope",), "Unknown method 'hope'"),
        (("retrain",), "retrain is exact and needs no proof"),
        (("finetune", "--probes", "1"), "Expected at least 3 probe subjects"),
        (("finetune", "--models", "4"), "and 8 references and runs of each"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_done(home: Path, words: Any, sentence: str) -> None:
    result = run("qualify", *words)
    assert result.exit_code != 0
    assert sentence in str(result.exception)
    assert not (home / "evaluations").exists()


def test_without_data(home: Path) -> None:
    shutil.rmtree(home / "data")
    result = qualify("finetune")
    assert result.exit_code != 0
    assert "Expected" in str(result.exception)
