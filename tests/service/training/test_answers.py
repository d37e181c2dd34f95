from __future__ import annotations

import csv
import itertools
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from typer.testing import CliRunner

from service.banks.store import BankStore
from service.cli import app
from service.errors import PoorModelError
from service.models import deployment, registry
from service.models.building import build_model
from service.training.answers import Answers, answers_of, refusal, require_good_model_in_service, shortcoming
from service.training.data import images_in_service, recipe_of
from service.training.production import train_production
from service.training.spec import open_images
from tests.service import tiny
from unlearning.faces.dataset import METADATA
from unlearning.training import Examples, logits

CLASSES = ("glasses", "none")


def answers(*confusion):
    return Answers(CLASSES, np.array(confusion, dtype=np.int64))


@pytest.fixture
def lopsided(tiny_context):
    """A home whose model in service answers one class for everybody."""
    tiny.make_lopsided(tiny_context, young=tiny.people(tiny_context)[-1])
    train_production(tiny_context, seed=0)
    return tiny_context


def invoke(context, monkeypatch, *arguments):
    for name in ("home", "recipe", "jobs", "device"):
        monkeypatch.setenv(f"EXPUNGE_{name.upper()}", str(getattr(context.settings, name)))
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("EXPUNGE_DATABASE_URL", raising=False)
    return CliRunner().invoke(app, list(arguments))


def test_the_table_is_that_of_a_naive_count(tiny_context):
    faces = open_images(images_in_service(tiny_context, recipe_of(tiny_context)))
    digest = deployment.pointer(tiny_context).committed_digest
    model, rows = build_model(registry.load_checked(tiny_context, digest)), faces.where(split="train")
    said = logits(model, Examples.from_arrays(faces.images[rows], faces.labels[rows]).images).argmax(1)
    found = answers_of(model, faces, rows)
    for label, answer in itertools.product(range(2), range(2)):
        assert found.confusion[label, answer] == np.sum((faces.labels[rows] == label) & (said == answer))
    assert found.accuracy == np.mean(said == faces.labels[rows])
    assert found.largest_share == max(np.mean(faces.labels[rows] == label) for label in range(2))
    assert (found.n_images, found.n_labels, found.n_answered) == (len(rows), 2, len(set(said)))


def test_no_images_give_no_figures():
    none = answers([0, 0], [0, 0])
    assert (none.n_images, none.n_labels, none.n_answered) == (0, 0, 0)
    assert np.isnan(none.accuracy)
    assert np.isnan(none.largest_share)


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (answers([5, 1], [1, 5]), answers([3, 1], [1, 3]), None),
        (answers([0, 6], [0, 9]), answers([0, 4], [0, 6]), "answers one class only: it is right on 60.0% of the 10 "
         "images of held-out subjects, the largest class is 60.0% of them, and it ever answers 1 of 2 classes."),
        (answers([5, 1], [1, 5]), answers([2, 2], [3, 3]), "is no better than always answering the largest class: it "
         "is right on 50.0% of the 10 images of held-out subjects, the largest class is 60.0% of them, and it ever "
         "answers 2 of 2 classes."),
        (answers([0, 4], [0, 4]), answers([0, 0], [0, 0]), "it is right on 50.0% of the 8 images it learned from"),
        (answers([5, 1], [1, 5]), answers([0, 0], [0, 9]), None),  # test images of one class have one right answer
        (answers([0, 0], [0, 9]), answers([0, 0], [0, 9]), None),
    ],
)  # fmt: skip
def test_a_poor_model_is_named_with_its_figures(train, test, said):
    sentence = shortcoming(train, test)
    assert said in sentence if said else sentence == ""


def test_what_is_refused_later_is_said_at_once():
    constant, good = answers([0, 6], [0, 9]), answers([5, 1], [1, 8])
    assert "erasures refuse it" in shortcoming(constant, constant)
    assert "erasures refuse it" not in shortcoming(good, constant)


def test_a_poor_model_comes_into_service_with_a_warning(lopsided, monkeypatch):
    result = invoke(lopsided, monkeypatch, "train", "--seed", "1")
    assert result.exit_code == 0, result.output
    assert "Warning: The model answers one class only: it is right on 97.5% of the 120" in result.output
    assert "answered young" in result.output
    assert "every audit of it passes, since it says the same of everybody" in result.output


def test_a_strict_training_takes_no_poor_model_into_service(lopsided, monkeypatch):
    before, files = deployment.pointer(lopsided), sorted(lopsided.settings.reports_folder.rglob("*"))
    result = invoke(lopsided, monkeypatch, "train", "--seed", "1", "--strict")
    assert isinstance(result.exception, PoorModelError), result.output
    assert result.exception.detail.endswith("It was not taken into service.")
    assert deployment.pointer(lopsided) == before
    assert len(registry.versions(lopsided)) == 2
    assert list(lopsided.settings.home.glob(".training-*")) == []
    assert sorted(lopsided.settings.reports_folder.rglob("*")) == files


def test_a_good_model_passes_a_strict_training(tiny_context):
    """Judged on what it learned from: the held-out subjects are of one class, and too few to be known by."""
    table = tiny_context.settings.data_folder / METADATA
    rows = table.read_text().splitlines(keepends=True)
    table.write_text("".join(row for row in rows if not row.endswith(",young,test\n")))
    made = train_production(tiny_context, seed=2, strict=True)
    assert (made.shortcoming, made.test.n_labels) == ("", 1)


def test_the_files_of_a_training_hold_counts_and_losses_and_name_nobody(tiny_context):
    made = train_production(tiny_context, seed=5)
    table, curve = made.files
    assert table.parent == tiny_context.settings.reports_folder / "training" / made.digest[:16]
    rows = list(csv.reader(table.read_text().splitlines()))
    assert rows[0] == ["split", "label", "answered old", "answered young"]
    assert [row[:2] for row in rows[1:]] == [["train", "old"], ["train", "young"], ["test", "old"], ["test", "young"]]
    assert np.array_equal(np.array([row[2:] for row in rows[3:]], dtype=int), made.test.confusion)
    drawing = ElementTree.fromstring(curve.read_text())  # noqa: S314 (our own file)
    assert drawing.findtext("{*}title") == "Loss by epoch"
    text = table.read_text() + curve.read_text()
    everybody = tiny.people(tiny_context) + tiny.people(tiny_context, "test")
    assert not any(person in text for person in everybody)
    assert not any(image.name in text for person in everybody for image in tiny.images_of(tiny_context, person))


@pytest.mark.parametrize(
    "command",
    [
        "references build", "references refresh --all", "evaluate finetune --person {}", "compare finetune --forget {}",
        "tune scrub --forget {}",
    ],
)  # fmt: skip
def test_what_judges_refuses_a_model_that_answers_one_class_only(lopsided, monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    result = invoke(lopsided, monkeypatch, *command.format(tiny.people(lopsided)[0]).split())
    assert isinstance(result.exception, PoorModelError), (result.output, result.exception)
    assert "every audit of it passes, since it says the same of everybody" in result.exception.detail
    assert 'docs/own-data.md, "When a model is no good"' in result.exception.detail
    assert not BankStore(lopsided.settings.banks_folder).any()
    assert not lopsided.settings.evaluations_folder.exists()


def test_a_model_that_tells_its_classes_apart_is_not_refused(tiny_context):
    require_good_model_in_service(tiny_context)


def test_without_a_model_in_service_nothing_is_refused(context):
    require_good_model_in_service(context)


def test_a_model_by_another_recipe_says_nothing_of_what_this_one_trains(lopsided):
    other = lopsided.settings.home / "other.json"
    other.write_text((lopsided.settings.home / "recipe.json").read_text().replace('"epochs": 12', '"epochs": 13'))
    settings = lopsided.settings.model_copy(update={"recipe": str(other)})
    require_good_model_in_service(replace(lopsided, settings=settings))


def test_one_class_is_all_that_a_model_of_one_class_can_answer(lopsided):
    faces = open_images(images_in_service(lopsided, recipe_of(lopsided)))
    model = build_model(registry.load_checked(lopsided, deployment.pointer(lopsided).committed_digest))
    train = faces.where(split="train")
    of_one_class = train[faces.labels[train] == 0]
    assert refusal("it", model, faces, train) is not None
    assert refusal("it", model, faces, of_one_class) is None
