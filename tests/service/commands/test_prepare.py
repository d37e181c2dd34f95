"""`expunge prepare` on a tiny home: what it says, what it makes, and that a kill at any point costs nothing twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from click.testing import Result
from sqlmodel import select
from typer.testing import CliRunner

from audit.policy import Policy, load_policy
from service.banks import spares
from service.banks.qualifications import Qualified
from service.cli import app
from service.commands.prepare import _alone
from service.commands.screen import console
from service.context import Context
from service.settings import Settings
from service.store.engine import reading
from service.store.tables import Qualification, TunedSubject
from service.studies.method_catalog import standings
from service.training.data import recipe_of
from service.training.jobs import release_processes
from tests.faults.zygote import Forked, Zygote
from tests.service import tiny
from unlearning.faces.sources import synthetic

pytest.importorskip("optuna")
pytestmark = pytest.mark.timeout(900)

RECIPE = {**tiny.RECIPE, "epochs": 4, "batch_size": 8, "learning_rate": 0.05}
METHOD = "eu_k"  # makes its last blocks anew, so it forgets whatever the settings
LAX = Policy(
    name="lax", n_models=4, retain_ratio_min=0.0, test_ratio_min=0.0, exchangeability_alpha=0.0,
    forgetting_ratio_min=0.0, cost_share_max=1.0, ladder=("finetune", "retrain"), gate_alpha=0.05, qualification=True,
    staleness_max=0.5,
)  # fmt: skip
SMALL = ("prepare", METHOD, "--yes", "--probes", "3", "--models", "8", "--trials", "2", "--canaries", "0")
KILLS = ("model 1", "row 7", "trial 1", "lot 1", "row 3", "result 1")
"""In this order, one a process: in training, in the references, in the search, when the lot is drawn (which starts the
models of the qualification with the next process), in these, and before the result is stored."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data and keys, no model: two copies draw the same lots."""
    home = tmp_path_factory.mktemp("prepare") / "home"
    (home / "keys").mkdir(parents=True, mode=0o700)
    (home / "keys" / "block.key").write_bytes(bytes(32))  # so that every run of the tests draws the same lots
    (home / "keys" / "block.key").chmod(0o600)
    (home / "recipe.json").write_text(json.dumps(RECIPE))
    (home / "lax.json").write_text(json.dumps(asdict(LAX)))
    settings = Settings(home=home, database_url="")
    synthetic.write_folder(settings.data_folder, n_subjects=12, images_per_subject=3, size=(16, 16), seed=1)
    tiny.change_table(settings, lambda row: row | {"label": "young" if row["label"] < "age_5" else "old"})
    Context.open(settings).engine.dispose()
    return home


@pytest.fixture
def home(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "home"
    shutil.copytree(template, home)
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(console, "width", 200)
    yield home
    release_processes()


def environment(home: Path) -> dict[str, str]:
    given = {"home": home, "recipe": home / "recipe.json", "policy": home / "lax.json", "database_url": "", "jobs": 1}
    return {f"EXPUNGE_{name.upper()}": str(value) for name, value in {**given, "device": "cpu"}.items()}


def run(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def recommended(home: Path) -> Policy:
    return load_policy(home / "recommended-policy.json")


def qualification(context: Context) -> Qualification:
    """The only one."""
    with reading(context.engine) as s:
        (row,) = s.exec(select(Qualification))
    return row


def tuned_tags(context: Context) -> set[str]:
    with reading(context.engine) as s:
        return {row.tag for row in s.exec(select(TunedSubject))}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


def prepare(zygote: Zygote, home: Path, notes: Path, end: str) -> tuple[int | None, str]:
    """The command in a process that notes what it does, and is killed after an event; its status, and what it said."""
    said, logged = home / "said", home / "logged"
    said.unlink(missing_ok=True)
    program = f"""
import os, sys
os.dup2(os.open({str(logged)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
from tests.service.killed_preparation import main
main(sys.argv[1:])
"""
    env = {**os.environ, **environment(home), "COLUMNS": "200"}
    status = Forked(zygote, program, env, said, [str(notes), end, *SMALL]).wait(800)
    return status, said.read_text() + (logged.read_text() if status != 0 else "")


@dataclass(frozen=True)
class Whole:
    """A home that was prepared at one go: what was said, and what was done."""

    home: Path
    said: str
    events: Counter[str]


@pytest.fixture(scope="module")
def whole(template: Path, zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    home = tmp_path_factory.mktemp("whole") / "home"
    shutil.copytree(template, home)
    status, said = prepare(zygote, home, home / "notes", "never")
    assert status == 0, said
    return Whole(home, said, Counter((home / "notes").read_text().splitlines()))


def test_from_checked_data_to_a_recommended_policy(whole: Whole) -> None:
    home, said = whole.home, whole.said
    steps = (
        "36 images of 12 people: every rule holds.", "No model yet: training one by the recipe tiny.", "Generation 1",
        "references", "spares", "settings of eu_k", "qualification of eu_k", "To do: at most ",
        "Settings are searched on ", "eu_k: lot number 1", "Recommended: spare, then eu_k, then exact retraining. ",
        "eu_k is qualified: a run costs ", "export EXPUNGE_POLICY=",
    )  # fmt: skip
    assert [step for step in steps if step not in said] == []
    assert sorted(steps, key=said.index) == list(steps)
    assert recommended(home) == replace(LAX, name="lax-recommended", ladder=("spare", METHOD, "retrain"))
    people = {row.split(",")[1] for row in (home / "data" / "metadata.csv").read_text().splitlines()[1:]}
    kept = (home / "recommended-policy.json").read_text() + (home / "tuned.json").read_text()
    assert not [person for person in people if person in said + kept]


def test_what_was_found_by_tuning_is_qualified_on_other_subjects(whole: Whole) -> None:
    home = whole.home
    assert f"EXPUNGE_TUNED={home / 'tuned.json'}" in whole.said
    settings = Settings(home=home, recipe=str(home / "recipe.json"), policy=str(home / "lax.json"), database_url="")
    context = Context.open(settings.model_copy(update={"tuned": home / "tuned.json"}))
    assert isinstance(standings(context, recipe_of(context), [METHOD])[METHOD], Qualified)
    untuned = replace(context, settings=settings)
    assert "with other settings only" in str(standings(untuned, recipe_of(context), [METHOD])[METHOD])
    row, tags = qualification(context), tuned_tags(context)
    context.engine.dispose()
    assert len(tags) == 3
    assert not tags & {probe["tag"] for probe in row.probes}
    assert row.n_drawn_from == row.n_subjects - 3


def test_given_again_it_does_nothing(whole: Whole, monkeypatch: pytest.MonkeyPatch) -> None:
    home = whole.home
    for name, value in environment(home).items():
        monkeypatch.setenv(name, value)
    policy = recommended(home)
    rows = {path: path.stat().st_mtime_ns for path in home.rglob("*.row")}
    for in_force in ("lax.json", "recommended-policy.json"):  # also by the policy that it recommended
        monkeypatch.setenv("EXPUNGE_POLICY", str(home / in_force))
        again = run(*SMALL)
        assert again.exit_code == 0, again.output
        assert "Everything is there already." in again.output
        assert {path: path.stat().st_mtime_ns for path in home.rglob("*.row")} == rows
        assert recommended(home) == policy


def test_without_a_method_that_can_pay_spares_are_recommended(home: Path) -> None:
    done = run("prepare", "--yes")
    assert done.exit_code == 0, done.output
    context = Context.open(Settings())
    n = len(tiny.people(context))  # each is a block
    assert spares.count(context) == n
    context.engine.dispose()
    assert f"after each run, however many requests it holds, the idle worker trains about {n} anew; " in done.output
    assert "Recommended: spare, then exact retraining. An erasure costs about 0.05 trainings at" in done.output
    assert "EXPUNGE_TUNED" not in done.output
    assert recommended(home).ladder == ("spare", "retrain")


def test_without_spares_and_methods_exact_retraining_is_recommended(home: Path) -> None:
    done = run("prepare", "--yes", "--without", "spares")
    assert done.exit_code == 0, done.output
    assert "Recommended: exact retraining alone, 1 training an erasure (" in done.output
    assert "even if all of them were erased one by one, it would not pay" in done.output
    assert recommended(home).ladder == ("retrain",)
    assert not (home / "tuned.json").exists()
    status = run("references", "status").output
    assert "missing" not in status
    assert "building" not in status


def test_what_may_be_spent_bounds_it(home: Path) -> None:
    done = run("prepare", METHOD, "--yes", "--most-trainings", "10")
    assert done.exit_code == 0, done.output
    assert "References are left out: they cost " in done.output
    assert "Everything is there already." in done.output
    assert not (home / "evaluations").exists()
    assert recommended(home).ladder == ("retrain",)


def test_a_failed_method_is_not_qualified_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hard = {**asdict(LAX), "name": "hard", "cost_share_max": 0.0}
    (home / "lax.json").write_text(json.dumps(hard))
    words = (*SMALL, "--without", "tune", "--without", "references")
    for _ in range(2):
        done = run(*words)
        assert done.exit_code == 0, done.output
        assert "Recommended: exact retraining alone" in done.output
        assert f"{METHOD} failed its qualification on " in done.output
    context = Context.open(Settings())
    with reading(context.engine) as s:
        assert [row.lot_number for row in s.exec(select(Qualification))] == [1]
    context.engine.dispose()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "Expected a terminal to ask whether the price is to be paid, or the option --yes"),
        (("hope", "--yes"), "Unknown method 'hope'"),
        (("retrain", "--yes"), "retrain is exact and needs no proof"),
        ((METHOD, "--yes", "--probes", "2"), "Expected at least 3 probe subjects"),
        ((METHOD, "--yes", "--models", "4"), "and 8 references and runs of each"),
    ],
)
def test_what_cannot_be_asked_is_said_before_anything_is_done(
    home: Path, words: tuple[str, ...], sentence: str
) -> None:
    done = run("prepare", *words)
    assert done.exit_code != 0
    assert sentence in str(done.exception)
    assert not (home / "models").exists()


@pytest.mark.parametrize("words", [("--without", "everything"), ("--most-trainings", "0"), ("--trials", "0")])
def test_options_out_of_range_are_refused(home: Path, words: tuple[str, ...]) -> None:
    assert run("prepare", "--yes", *words).exit_code == 2


def test_data_that_break_a_rule_are_named(home: Path) -> None:
    table = home / "data" / "metadata.csv"
    table.write_text(table.read_text() + "nowhere.png,ada,old,train\n")
    done = run("prepare", "--yes")
    assert "metadata.csv, line 38: " in str(done.exception)
    shutil.rmtree(home / "data")
    assert "Expected metadata.csv in " in str(run("prepare", "--yes").exception)


def test_a_model_that_answers_one_class_only_ends_it(home: Path) -> None:
    (home / "recipe.json").write_text(json.dumps({**RECIPE, "learning_rate": 1e-12, "epochs": 1}))
    for _ in range(2):  # the second finds the model
        done = run("prepare", "--yes")
        assert "Warning: The model answers one class only" in done.output
        assert "but it answers one class only" in str(done.exception)
    assert not list(home.rglob("*.row"))


def test_a_model_of_another_recipe_is_not_judged(home: Path) -> None:
    assert run("train").exit_code == 0
    (home / "recipe.json").write_text(json.dumps({**RECIPE, "name": "other", "epochs": 5}))
    done = run("prepare", "--yes")
    assert "Expected the model in service to be of the recipe other" in str(done.exception)


def test_only_one_at_a_time_works_on_a_home(home: Path) -> None:
    with _alone(home):
        done = run("prepare", "--yes")
    assert "Expected no other `expunge prepare` on this home" in str(done.exception)


def test_whoever_waits_for_erasure_is_neither_tuned_on_nor_drawn(home: Path) -> None:
    context = Context.open(Settings())
    asked = tiny.people(context)[0]
    tiny.file(context, asked)
    done = run(*SMALL, "--without", "references")
    assert done.exit_code == 0, done.output
    tags = tuned_tags(context) | {probe["tag"] for probe in qualification(context).probes}
    assert context.keyring.block_hash(asked) not in tags
    context.engine.dispose()


def test_killed_at_any_point_it_goes_on_and_does_nothing_twice(
    whole: Whole, template: Path, zygote: Zygote, tmp_path: Path
) -> None:
    home, notes = tmp_path / "home", tmp_path / "notes"
    shutil.copytree(template, home)
    for end in KILLS:
        status, said = prepare(zygote, home, notes, end)
        assert status == -signal.SIGKILL, (end, said)
        assert not (home / "recommended-policy.json").exists()
    status, said = prepare(zygote, home, notes, "never")
    assert status == 0, said

    events = Counter(notes.read_text().splitlines())
    rows = [{event: n for event, n in each.items() if event.startswith("row ")} for each in (events, whole.events)]
    assert rows[0] == rows[1]  # every model of a bank that is to be there, and none trained again
    assert set(rows[0].values()) == {1}
    assert sum(n for event, n in events.items() if event.startswith("trial ")) == 2
    assert recommended(home) == recommended(whole.home)
    for each in (home, whole.home):
        context = Context.open(Settings(home=each, recipe=str(each / "recipe.json"), database_url=""))
        row = qualification(context)
        assert (row.lot_number, row.passed) == (1, True)
        context.engine.dispose()
