"""`expunge data check` tells of files that no row names: by name in a terminal, else how many."""

from __future__ import annotations

import pytest
from PIL import Image
from rich.console import Console
from sqlalchemy import update
from sqlmodel import select
from typer.testing import CliRunner

from service.cli import app
from service.commands import data
from service.store.engine import session
from service.store.tables import ErasureRequest
from tests.service import tiny
from tests.service.versions import image
from unlearning.faces import read_metadata


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


def test_where_nobody_is_held_out_check_and_import_say_what_comes_of_it(tiny_context, check, tmp_path, monkeypatch):
    """Such data can be trained on, and the first erasure would tell."""
    assert "split test" not in check(terminal=False)
    table = tiny_context.settings.data_folder / "metadata.csv"
    table.write_text(table.read_text().replace(",test\n", ",train\n"))
    assert "every rule holds. But nobody is in split test" in check(terminal=False)
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path / "other"))
    result = CliRunner().invoke(app, ["data", "import", str(tiny_context.settings.data_folder), "--split", "split"])
    assert result.exit_code == 0, result.output
    assert "But nobody is in split test" in result.output


def test_whoever_waits_for_erasure_breaks_no_rule(tiny_context, check):
    """Their images are in the folder until the erasure destroys them; only afterwards must they not come back."""
    person = tiny.people(tiny_context)[0]
    tiny.file(tiny_context, person)
    assert "every rule holds" in check(terminal=False)
    with session(tiny_context.engine) as s:
        (request,) = s.exec(select(ErasureRequest))
        s.exec(update(ErasureRequest).where(ErasureRequest.id == request.id).values(state="completed"))
        s.commit()
    result = CliRunner().invoke(app, ["data", "check"])
    assert result.exit_code == 1
    assert "This person was erased and must not come back" in result.output


def test_an_image_saved_again_for_somebody_else_is_named_by_its_lines(tiny_context, check):
    folder = tiny_context.settings.data_folder
    rows = read_metadata(folder)
    first, other = rows[0], next(row for row in rows if row.user_id != rows[0].user_id)
    image = Image.open(folder / first.file_name).convert("RGB").resize((64, 64))
    image.save(folder / "again.jpg", quality=90)
    with (folder / "metadata.csv").open("a") as table:
        table.write(f"again.jpg,{other.user_id},{other.label},{other.split}\n")
    said = check(terminal=False)
    assert "1 pair of images look the same and belong to different people" in said
    assert f"lines {first.line} and {len(rows) + 2}" in said
    assert other.user_id not in said


def test_what_macos_left_is_counted_and_not_named(tiny_context, check):
    folder = tiny_context.settings.data_folder
    (folder / "__MACOSX").mkdir()
    for name in ("._metadata.csv", "__MACOSX/._metadata.csv", "__MACOSX/x"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    said = " ".join(check(terminal=True).split())
    assert "3 files of macOS (named ._… or in __MACOSX) were skipped" in said
    assert "no row names" not in said
    assert "metadata" not in said


def test_an_import_counts_what_macos_left(tmp_path, monkeypatch):
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(data, "console", Console(highlight=False, no_color=True))
    source = tmp_path / "source"
    (source / "__MACOSX").mkdir(parents=True)
    lines = ["file_name,user_id,label", "__MACOSX/._0.png,s0,a"]
    for number in range(20):
        (source / f"{number}.png").write_bytes(image(number))
        lines.append(f"{number}.png,s{number},{'ab'[number % 2]}")
    (source / "__MACOSX/._0.png").write_bytes(b"\0\5\x16\7")
    (source / "._1.png").write_bytes(b"\0\5\x16\7")
    (source / "metadata.csv").write_text("\n".join(lines))
    result = CliRunner().invoke(app, ["data", "import", str(source)])
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "20 images in" in said
    assert "2 files of macOS (named ._… or in __MACOSX) were skipped" in said


def test_files_that_no_row_names_are_named_in_a_terminal_only(tiny_context, check):
    folder = tiny_context.settings.data_folder
    image = tiny.images_of(tiny_context, tiny.people(tiny_context)[0])[0]
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
