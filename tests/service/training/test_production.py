from __future__ import annotations

import json

import numpy as np
import pytest

from audit.policy import PRESETS
from service.errors import ConflictError
from service.models import deployment, registry
from service.models.manifest import library_versions
from service.requests.intake import bury
from service.store.engine import session
from service.training.data import pack_images, recipe_of
from service.training.production import train_production
from service.training.spec import open_images
from service.worker import claim
from tests.service import tiny
from unlearning.errors import FacesError
from unlearning.models import save_weights
from unlearning.training import Examples, train


def trained_without(context, tmp_path, *absent):
    """Digest of a naive training without some people."""
    faces = open_images(pack_images(context.settings, recipe_of(context)))
    rows = np.flatnonzero((faces.splits == "train") & ~np.isin(faces.subjects, absent))
    data = Examples.from_arrays(faces.images[rows], faces.labels[rows])
    model = train(recipe_of(context), data, n_classes=2, seed=5, device="cpu").model
    return save_weights(model, tmp_path / "twin.safetensors")


def test_the_next_model_is_registered_and_put_into_service(tiny_context, tmp_path):
    told = []
    made = train_production(tiny_context, seed=5, on_epoch=lambda *epoch: told.append(epoch[:2]))
    assert made.digest == trained_without(tiny_context, tmp_path)
    assert made.generation == 2
    pointer = deployment.pointer(tiny_context)
    assert (pointer.committed_digest, pointer.committed_generation) == (made.digest, 2)
    assert 0.5 < made.train.accuracy <= 1.0
    assert 0.0 <= made.test.accuracy <= 1.0
    n_epochs = tiny.RECIPE["epochs"]
    assert told == [(epoch, n_epochs) for epoch in range(1, n_epochs + 1)]


def test_people_who_asked_to_be_erased_are_left_out_even_while_they_wait(tiny_context, tmp_path):
    waiting, erased, *_ = tiny.people(tiny_context)
    tiny.file(tiny_context, waiting)
    with session(tiny_context.engine) as s:
        bury(s, [tiny_context.keyring.subject_hash(erased)], now=tiny_context.now())  # put back into the folder since
        s.commit()
    made = train_production(tiny_context, seed=5)
    assert made.digest == trained_without(tiny_context, tmp_path, waiting, erased)
    assert made.digest != trained_without(tiny_context, tmp_path)


def test_the_same_seed_on_the_same_data_is_the_same_version(tiny_context):
    before = deployment.pointer(tiny_context)
    again = train_production(tiny_context, seed=0)  # the seed of the home's model
    assert (again.digest, again.generation) == (before.committed_digest, before.committed_generation)
    assert len(registry.versions(tiny_context)) == 1


def test_the_manifest_says_where_the_weights_come_from(tiny_context):
    recipe = recipe_of(tiny_context)
    made = train_production(tiny_context, seed=5)
    manifest = registry.load_checked(tiny_context, made.digest).manifest
    assert manifest.classes == ("old", "young")
    assert (manifest.recipe_digest, manifest.seed) == (recipe.digest, 5)
    assert manifest.data_manifest_digest == pack_images(tiny_context.settings, recipe).manifest_digest
    assert manifest.lineage == {"method": "train"}
    assert manifest.versions == library_versions()
    assert {"expunge", "torch", "torchvision", "numpy"} <= library_versions().keys()
    text = json.dumps(manifest.to_dict())
    assert not any(person in text for person in tiny.people(tiny_context))


def test_no_working_file_is_left(tiny_context):
    train_production(tiny_context, seed=5)
    assert list(tiny_context.settings.home.glob(".training-*")) == []


def test_a_data_folder_that_breaks_a_rule_changes_nothing(tiny_context):
    tiny.change_table(tiny_context.settings, lambda row: row | {"split": "elsewhere"})
    with pytest.raises(FacesError, match="split"):
        train_production(tiny_context, seed=5)
    assert deployment.pointer(tiny_context).committed_generation == 1


def test_nothing_is_trained_beside_an_erasure(tiny_context):
    tiny.file(tiny_context, tiny.people(tiny_context)[0])
    run_id = claim(tiny_context, PRESETS["standard"])
    with pytest.raises(ConflictError, match=rf"Expected no erasure to be running, found run {run_id}"):
        train_production(tiny_context, seed=5)
    assert len(registry.versions(tiny_context)) == 1


def test_a_model_of_somebody_who_asked_meanwhile_never_serves(tiny_context):
    asks_late = tiny.people(tiny_context)[0]

    def on_epoch(epoch, *_):
        if epoch == 2:
            tiny.file(tiny_context, asks_late)

    with pytest.raises(ConflictError, match="1 did; train again"):
        train_production(tiny_context, seed=5, on_epoch=on_epoch)
    assert len(registry.versions(tiny_context)) == 1
    assert train_production(tiny_context, seed=5).generation == 2  # without them


@pytest.mark.parametrize("at", ["added", "staged"])
def test_the_last_look_is_between_staging_and_commit(tiny_context, monkeypatch, at):
    asks_late, real = tiny.people(tiny_context)[0], {"added": registry.add, "staged": deployment.stage}[at]

    def then_file(*args, **options):
        result = real(*args, **options)
        tiny.file(tiny_context, asks_late)
        return result

    module = registry if at == "added" else deployment
    monkeypatch.setattr(module, real.__name__, then_file)
    with pytest.raises(ConflictError, match="train again"):
        train_production(tiny_context, seed=5)
    pointer = deployment.pointer(tiny_context)
    assert (pointer.committed_generation, pointer.staging_generation) == (1, None)
    assert [version.state for version in registry.versions(tiny_context)] == ["active", "destroyed"]
    assert len(list(tiny_context.settings.models_folder.glob("*.safetensors"))) == 1
