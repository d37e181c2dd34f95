import dataclasses
import json

import numpy as np
import pytest

from service.studies.datasets import WORLDS
from unlearning import tuned
from unlearning.errors import MethodError
from unlearning.methods import METHODS, settings_for
from unlearning.recipes import RECIPES
from unlearning.tuned import tuned_record

TABLES = json.loads(tuned._FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TABLES)
def test_file_belongs_to_the_recipes_as_they_are(name):
    assert TABLES[name]["recipe_digest"] == RECIPES[name].digest, f"tune the methods for {name} again"


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in TABLES for method in TABLES[name]["methods"]])
def test_every_entry_is_valid_and_says_how_it_was_found(name, method):
    entry = TABLES[name]["methods"][method]
    authors = METHODS[method].settings().to_dict()
    assert METHODS[method].settings.from_dict(entry["settings"])
    assert all(authors[key] != value for key, value in entry["settings"].items()), "only what differs is written down"
    assert {"command", "people", "n_retrained", "n_unlearned", "forgetting_ratio"} <= entry["record"].keys()
    reported = {person for world in WORLDS.values() for people in world.reported.values() for person in people}
    assert not reported & set(np.ravel(entry["record"]["people"]))


def test_a_file_of_one_s_own_goes_before_the_package_s(tmp_path, monkeypatch, recipe):
    shipped = {"settings": {"learning_rate": 0.5}, "record": {}}
    monkeypatch.setattr(
        tuned,
        "_tables",
        lambda: {"x": {"recipe_digest": recipe.digest, "methods": {"finetune": shipped, "seif": shipped}}},
    )
    mine = {"settings": {"learning_rate": 0.125}, "record": {}}
    file = tmp_path / "tuned.json"
    file.write_text(json.dumps({"x": {"recipe_digest": recipe.digest, "methods": {"finetune": mine}}}))
    assert settings_for("finetune", recipe, file).learning_rate == 0.125
    assert settings_for("seif", recipe, file).learning_rate == 0.5
    for content in ("no JSON", "[]", '{"x": {}}'):
        file.write_text(content)
        with pytest.raises(MethodError, match="expunge tune"):
            settings_for("finetune", recipe, file)
    with pytest.raises(MethodError, match="to be a file that `expunge tune` wrote"):
        settings_for("finetune", recipe, tmp_path / "nowhere.json")


def test_settings_found_for_a_recipe_are_used(monkeypatch, recipe):
    found = {"settings": {"learning_rate": 0.125}, "record": {}}
    table = {"mine": {"recipe_digest": recipe.digest, "methods": {"finetune": found}}}
    monkeypatch.setattr(tuned, "_tables", lambda: table)
    assert settings_for("finetune", recipe).learning_rate == 0.125
    assert settings_for("finetune", recipe).recipe == recipe
    assert settings_for("seif", recipe).to_dict() == METHODS["seif"].settings().to_dict()
    assert tuned_record("finetune", recipe) == found
    renamed = dataclasses.replace(recipe, name="other name, same recipe")
    assert settings_for("finetune", renamed).learning_rate == 0.125
    changed = dataclasses.replace(recipe, epochs=99)
    assert settings_for("finetune", changed).learning_rate == METHODS["finetune"].settings().learning_rate
    assert tuned_record("finetune", changed) is None
