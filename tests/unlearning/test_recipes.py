"""Recipes: frozen, checked, named by what they do; built-in or from a file."""

import dataclasses
import json

import pytest

from unlearning import models
from unlearning.errors import RecipeError
from unlearning.recipes import ARCHITECTURES, RECIPES, Recipe, load_recipe, recipe_from_dict

PLAIN = Recipe("plain", "small_resnet", image_size=(32, 32))

OTHER_VALUES = {
    "architecture": "resnet18",
    "image_size": (32, 40),
    "channels": 3,
    "width": 8,
    "epochs": 3,
    "batch_size": 32,
    "optimiser": "adam",
    "schedule": "cosine",
    "learning_rate": 0.2,
    "momentum": 0.8,
    "weight_decay": 0.0,
    "class_weight_power": 0.5,
    "warmup_share": 0.1,
    "shift": 1,
    "flip": True,
    "dtype": "float32",
    "proportions": "crop",
}


def test_architectures_are_those_that_can_be_built():
    assert set(ARCHITECTURES) == set(models.ARCHITECTURES)


def test_every_option_but_the_name_changes_the_digest():
    given = {"weights", "weights_sha256", "architecture_source"}  # see below, and test_factories
    assert set(OTHER_VALUES) == {field.name for field in dataclasses.fields(Recipe)} - {"name"} - given
    digests = {dataclasses.replace(PLAIN, **{name: value}).digest for name, value in OTHER_VALUES.items()}
    assert len(digests | {PLAIN.digest}) == len(OTHER_VALUES) + 1
    assert dataclasses.replace(PLAIN, name="renamed").digest == PLAIN.digest


def test_given_weights_count_by_their_content_not_their_path():
    given = dataclasses.replace(PLAIN, weights="a/b.safetensors", weights_sha256="a" * 64)
    assert given.digest != PLAIN.digest
    assert dataclasses.replace(given, weights="elsewhere.safetensors").digest == given.digest
    assert dataclasses.replace(given, weights_sha256="b" * 64).digest != given.digest


@pytest.mark.parametrize(
    "options", [{"weights": "x"}, {"weights_sha256": "a" * 64}, {"weights": "x", "weights_sha256": "a"}, {"weights": 1}]
)
def test_given_weights_need_their_digest(options):
    with pytest.raises(RecipeError, match="weights"):
        dataclasses.replace(PLAIN, **options)


def test_a_file_s_weights_lie_beside_it(tmp_path):
    options = {**PLAIN.to_dict(), "weights": "given/w.safetensors", "weights_sha256": "a" * 64}
    (tmp_path / "mine.json").write_text(json.dumps(options))
    assert load_recipe(tmp_path / "mine.json").weights == str(tmp_path / "given" / "w.safetensors")
    (tmp_path / "mine.json").write_text(json.dumps({**options, "weights": "/elsewhere/w.safetensors"}))
    assert load_recipe(tmp_path / "mine.json").weights == "/elsewhere/w.safetensors"


def test_the_digest_is_the_same_in_every_process():
    digest = "5185c1dc379266cb67186dd0d0c48f2514a1a229bb2320d72cd5a514ef690bde"
    assert PLAIN.digest == digest


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=str)
def test_built_in_recipes_load_by_their_names_and_survive_json(recipe):
    assert load_recipe(recipe.name) is recipe
    assert recipe_from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


def test_a_file_gives_a_recipe(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"name": "mine", "architecture": "small_resnet", "image_size": [24, 20], "epochs": 2}))
    assert load_recipe(path) == load_recipe(str(path)) == Recipe("mine", "small_resnet", image_size=(24, 20), epochs=2)


def test_the_competitions_recipe_has_the_competitions_values():
    recipe = RECIPES["casia_surf_resnet18"]
    assert (recipe.architecture, recipe.image_size, recipe.channels) == ("resnet18", (32, 32), 3)
    assert (recipe.epochs, recipe.batch_size, recipe.learning_rate, recipe.weight_decay) == (30, 64, 1e-4, 5e-3)
    assert (recipe.optimiser, recipe.schedule, recipe.class_weight_power) == ("adam", "cosine", 1.0)
    assert (recipe.shift, recipe.flip) == (0, False)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"architecture": "resnet19"}, "unknown architecture 'resnet19'"),
        ({"image_size": (4, 32)}, r"expected image_size=4 as int in \[8, 1024\]"),
        ({"image_size": (32,)}, r"expected image_size \(height, width\)"),
        ({"channels": 2}, r"expected channels in \(1, 3\), got 2"),
        ({"channels": True}, "channels"),
        ({"width": 0}, "width=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"optimiser": "lion"}, r"expected optimiser in \('sgd', 'adam'\), got 'lion'"),
        ({"schedule": "step"}, "schedule"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001"),
        ({"class_weight_power": 2.0}, "class_weight_power=2.0"),
        ({"warmup_share": 1.0}, "warmup_share=1.0"),
        ({"shift": 17}, "shift=17"),
        ({"flip": "yes"}, "flip"),
        ({"flip": 1}, "flip"),
        ({"dtype": "float16"}, "dtype"),
        ({"epochs": "many"}, "epochs"),
        ({"epochs": 2.5}, "epochs"),
        ({"learning_rate": True}, "learning_rate"),
        ({"image_size": ["a", "b"]}, "image_size"),
        ({"image_size": 32}, "image_size"),
        ({"name": ""}, "name"),
    ],
    ids=str,
)
def test_a_wrong_value_is_told_its_range(options, sentence):
    with pytest.raises(RecipeError, match=sentence):
        dataclasses.replace(PLAIN, **options)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "not readable JSON"),
        ("[1]", "Expected a recipe as a JSON object of options, got list"),
        ('{"name": "x", "architecture": "small_resnet", "image_size": [8, 8], "epoch": 3}', r"options \['epoch'\]"),
        ('{"name": "x", "architecture": "small_resnet"}', "image_size"),
    ],
)
def test_a_wrong_file_is_told_what_is_wrong(content, sentence, tmp_path):
    path = tmp_path / "wrong.json"
    path.write_text(content)
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(path)


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(RecipeError, match=r"Unknown recipe 'att_smal'.*att_small"):
        load_recipe("att_smal")


def test_a_recipe_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAIN.epochs = 3
