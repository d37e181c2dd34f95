"""The list of methods: nothing in it is made up beside the registry, the descriptions and the tuned settings."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.commands.screen import console
from service.studies.method_catalog import describe, documented_cost, entries
from unlearning.errors import MethodError
from unlearning.methods import METHODS
from unlearning.recipes import RECIPES


@pytest.mark.parametrize("name", METHODS)
def test_every_method_says_what_it_costs(name: str) -> None:
    sentence = documented_cost(name)
    assert 10 < len(sentence) < 200
    assert "Defaults" not in sentence
    assert "  " not in sentence


def test_entries_follow_the_registry() -> None:
    found = entries(RECIPES["att_small"])
    assert [entry.name for entry in found] == list(METHODS)
    for entry in found:
        assert entry.authors.keys() == entry.settings.keys()
        assert (entry.settings != entry.authors) <= (entry.tuned_on is not None)
    assert describe("retrain", RECIPES["att_small"]).reads == "retain set only, not the model"
    assert describe("scrub", RECIPES["att_small"]).reads == "forget and retain set"


def test_a_recipe_nobody_tuned_has_no_measured_cost() -> None:
    entry = describe("dilute", RECIPES["casia_surf_resnet18"])
    assert (entry.tuned_on, entry.cost_share) == (None, None)
    assert entry.settings == entry.authors


def test_unknown_method() -> None:
    with pytest.raises(MethodError, match="Unknown method"):
        describe("hope", RECIPES["att_small"])


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "width", 200)  # whatever stands for a terminal here
    run = CliRunner().invoke
    table = run(app, ["methods"])
    assert table.exit_code == 0
    assert all(name in table.output for name in METHODS)
    plain = json.loads(run(app, ["methods", "--json"]).output)
    assert [entry["name"] for entry in plain] == list(METHODS)
    one = run(app, ["methods", "salun"])
    assert "salient_share" in one.output
    assert "Cost: one pass over the forget set" in one.output
