import pytest

from unlearning.errors import MethodError
from unlearning.methods import unlearn
from unlearning.methods.retrain import RetrainSettings, retrain
from unlearning.training import train


def test_is_training_by_the_recipe_on_the_retain_set(model, forget, retain, recipe, same):
    unlearned = unlearn("retrain", model, forget, retain, recipe=recipe, seed=6, device="cpu")
    assert same(unlearned.model, train(recipe, retain, n_classes=3, seed=6, device="cpu").model)


def test_needs_a_recipe(model, forget, retain):
    with pytest.raises(MethodError, match="needs the recipe"):
        retrain(model, forget, retain, settings=RetrainSettings(), seed=1, device="cpu")
