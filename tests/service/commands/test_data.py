"""`expunge data check` tells of files that no row names: by name in a terminal, else how many."""

from __future__ import annotations

import pytest
from rich.console import Console
from typer.testing import CliRunner

from service.cli import app
from service.commands import data
from tests.service import tiny


@pytest.fixture
def check(tiny_context, monkeypatch):
    monkeypatch.setenv("EXPUNGE_HOME", str(tiny_context.settings.home))

    def run(*, terminal: bool) -> str:
        monkeypatch.setattr(data, "console", Console(force_terminal=terminal, highlight=False, no_color=True))
        result = CliRunner().invoke(app, ["data", "check"])
        assert result.exit_code == 0, result.output
        return result.output

    return run


def test_a_folder_of_nothing_else_has_nothing_to_tell(check):
    assert "no row names" not in check(terminal=True)


def test_files_that_no_row_names_are_named_in_a_terminal_only(tiny_context, check):
    folder = tiny_context.settings.data_folder
    image = tiny.pictures_of(tiny_context, tiny.people(tiny_context)[0])[0]
    (folder / "copy\n.png").write_bytes(image.read_bytes())
    (folder / "metadata.csv.bak").write_text("s31")
    said = check(terminal=True)
    assert "every rule holds" in said
    assert "2 files in the data folder that no row names" in said
    assert "  copy\\n.png\n  metadata.csv.bak\n" in said
    said = check(terminal=False)
    assert "2 files in the data folder that no row names" in said
    assert "metadata" not in said
    for number in range(data.MOST_NAMES):
        (folder / f"x{number:03}").write_text("")
    assert "… and 2 more" in check(terminal=True)
