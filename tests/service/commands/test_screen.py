"""What commands show: counts that are known, and ids that can be copied."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from service.cli import app
from service.commands import screen
from service.context import Context
from service.keys import api_keys
from service.settings import Settings
from service.store.engine import session


def test_what_failed_before_it_was_counted_shows_no_bar(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path / "home"))
    (tmp_path / "images").mkdir()
    result = CliRunner().invoke(app, ["data", "import", str(tmp_path / "images")])
    assert result.exit_code != 0
    assert result.output.strip() == ""  # the error is told by `main`


def test_a_bar_counts_only_towards_a_known_number(capsys):
    with screen.progress_bar() as bar:
        bar.add_task("looking", total=None)
        copying = bar.add_task("copying", total=None)
        bar.update(copying, total=4, completed=4)
    said = capsys.readouterr().out
    assert "copying" in said
    assert "4/4" in said
    assert "looking" not in said


@pytest.mark.parametrize("width", [20, 80, 200])
def test_ids_of_keys_are_whole_whatever_the_width(tmp_path, monkeypatch, width):
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path))
    monkeypatch.setattr(screen.console, "_width", width)
    context, ids = Context.open(Settings(home=tmp_path)), ["1a2b3c4d", "privacy-office-of-the-whole-group"]
    with session(context.engine) as s:
        for key_id in ids:
            api_keys.create_key(
                s, name="Data protection " * 4, scopes=api_keys.SCOPES, now=context.now(), key_id=key_id
            )
        s.commit()
    context.engine.dispose()
    result = CliRunner().invoke(app, ["keys", "list"])
    assert result.exit_code == 0, result.output
    for key_id in ids:
        assert any(f" {key_id} " in line for line in result.output.splitlines())
    assert "…" not in result.output
