"""Words that must stay true: settings, commands and files that the documents name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from audit.policy import PRESETS
from audit.proof.certificate import openssl_recipe
from docs.generate_settings import settings_table
from service.cli import app
from service.commands.data import Layout
from service.serving.speedups import SPEEDUPS
from service.settings import Settings
from service.telemetry.catalog import metrics_page
from tests.faults.parts import PARTS
from unlearning.recipes import RECIPES

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_settings_table_is_the_settings() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_table(), (
        "run python docs/generate_settings.py > docs/settings.md"
    )


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if get_args(field.annotation)])
def test_the_settings_table_names_the_values_that_are_allowed(name: str) -> None:
    (row,) = [line for line in settings_table().splitlines() if f"`EXPUNGE_{name.upper()}`" in line]
    values = [value for value in get_args(Settings.model_fields[name].annotation) if isinstance(value, str)]
    assert [value for value in values if f"`{value}`" not in row.split("|")[3]] == []


@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if field.metadata])
def test_the_settings_table_names_the_numbers_that_are_allowed(name: str) -> None:
    (row,) = [line for line in settings_table().splitlines() if f"`EXPUNGE_{name.upper()}`" in line]
    for bound in Settings.model_fields[name].metadata:
        for attribute, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
            if hasattr(bound, attribute):
                assert f"{words} {getattr(bound, attribute):,.12g}" in row.lower()


def test_the_settings_table_names_policies_recipes_speedups_and_what_a_switch_takes() -> None:
    rows = {row.split("`")[1]: row for row in settings_table().splitlines() if row.startswith("| `EXPUNGE_")}
    named = {"POLICY": PRESETS, "RECIPE": RECIPES, "SPEEDUPS": SPEEDUPS}
    for setting, names in named.items():
        assert [name for name in names if not re.search(rf"\b{name}\b", rows[f"EXPUNGE_{setting}"])] == []
    switches = [name for name, field in Settings.model_fields.items() if field.annotation is bool]
    assert switches
    assert all("One of `true`, `false`." in rows[f"EXPUNGE_{name.upper()}"] for name in switches)


def test_the_metrics_table_is_the_catalog() -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page(), (
        "run python -m service.telemetry.catalog > docs/metrics.md"
    )


@pytest.mark.parametrize("layout", Layout)
def test_every_layout_of_a_data_set_is_explained(layout: Layout) -> None:
    assert f"| `{layout}` |" in (ROOT / "docs" / "own-data.md").read_text()


def test_the_openssl_commands_are_those_of_the_code() -> None:
    recipe = openssl_recipe("certificate.json").strip()
    assert recipe in (ROOT / "docs" / "certificates.md").read_text()
    first, *_ = recipe.splitlines()
    assert first.startswith("#")  # who runs it elsewhere reads of an unknown option only
    assert "OpenSSL 3" in first


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    for command in re.findall(r"(?:^    |`)expunge ((?:[a-z][a-z-]* ?){1,2})", page.read_text(), flags=re.MULTILINE):
        words = command.split()
        result = CliRunner().invoke(app, [*words[:1], "--help"])
        assert result.exit_code == 0, command
        if len(words) > 1 and words[0] in {"data", "references", "keys"}:
            assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0, command


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


def test_what_the_evidence_page_says_was_tried_is_tried() -> None:
    page = (ROOT / "docs" / "certificate-evidence.md").read_text()
    tests = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    for row in re.findall(r"^\| `.*\| ([^|]+) \|$", page, flags=re.MULTILINE):
        tried = re.findall(r"`([^`]+)`", row)
        assert tried or "every part" in row
        assert set(tried) <= tests | PARTS.keys(), row
