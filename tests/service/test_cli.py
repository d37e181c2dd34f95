"""The command line: help that teaches, and failures that are one sentence."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service import __version__
from service.cli import app
from service.launch import free_ports
from service.store.migrations import HEAD
from tests.faults.zygote import Zygote

COMMANDS = (
    "data att", "data synthetic", "data check", "train", "prepare", "references build", "references status", "evaluate",
    "serve", "worker", "up", "erase", "status", "verify", "keys init", "keys create", "keys list", "keys revoke",
    "keys rotate", "keys expire", "keys rotate-signing", "rerun", "rerun-check", "database status", "database upgrade",
    "demo",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(app, [*command.split(), "--help"])
    assert result.exit_code == 0, result.output
    assert len(result.output) > 200


def test_the_tour_begins_where_own_images_are_imported() -> None:
    tour = CliRunner().invoke(app, ["--help"]).output
    assert tour.index("expunge data import") < tour.index("expunge data check") < tour.index("expunge train")


def test_commands_that_do_not_compute_load_no_torch() -> None:
    """It takes seconds and half a gigabyte: `up` would hold that only to watch its children."""
    modules = "service.cli, service.commands.home, service.commands.screen, service.context, service.keys.api_keys"
    program = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0


def test_help_imports_neither_what_checks_settings_nor_what_computes() -> None:
    program = "import sys, service.cli; sys.exit(any(name in sys.modules for name in ('pydantic', 'numpy', 'torch')))"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0


Expunge = Callable[..., subprocess.CompletedProcess[str]]


def environment(home: Path) -> dict[str, str]:
    return {**os.environ, "EXPUNGE_HOME": str(home), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture
def expunge(zygote: Zygote) -> Expunge:
    """A command in a process of its own that need not import anything: `expunge(home, "keys", "list")`."""
    return lambda home, *words: zygote.run(words, environment(home))


def real(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A command as its user starts it."""
    command = [sys.executable, "-m", "service.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(home), timeout=120, check=False)


def test_the_version_is_told_with_those_that_matter() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert re.fullmatch(
        rf"expunge {__version__} \(Python [\d.]+, bentoml [\d.]+, torch [\d.]+\S*\)", result.output.strip()
    )


def test_the_service_s_keys_are_made_once_and_without_a_database(tmp_path: Path, expunge: Expunge) -> None:
    for _ in range(2):
        made = expunge(tmp_path, "keys", "init")
        assert made.returncode == 0, made.stderr
    public = (tmp_path / "keys" / "signing.pub").read_text()
    assert "BEGIN PUBLIC KEY" in public
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "keys").glob("*.key"))


def test_no_key_no_service(tmp_path: Path, expunge: Expunge) -> None:
    result = expunge(tmp_path, "serve")
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "Expected at least one API key; make one with `expunge keys create NAME --scope …`."
    )


def test_a_broken_data_folder_is_named_with_its_row(tmp_path: Path, expunge: Expunge) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "metadata.csv").write_text("file_name,user_id,label,split\na.png,p1,x,train\na.png,p2,y,train\n")
    result = expunge(tmp_path, "data", "check")
    assert result.returncode == 1
    assert result.stderr.startswith("metadata.csv, line 3: This file_name is already in line 2")
    assert "Traceback" not in result.stderr


def test_a_setting_out_of_range_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expunge: Expunge
) -> None:
    monkeypatch.setenv("EXPUNGE_API_WORKERS", "0")
    result = expunge(tmp_path, "references", "status")
    assert result.returncode == 1
    assert result.stderr.startswith("Expected EXPUNGE_API_WORKERS to be valid:")


def test_keys_are_made_shown_once_listed_and_revoked(tmp_path: Path, expunge: Expunge) -> None:
    made = expunge(tmp_path, "keys", "create", "app", "--scope", "predict")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip().splitlines()[-1]
    assert token.startswith("exp_")
    listed = expunge(tmp_path, "keys", "list")
    assert "predict" in listed.stdout
    assert token not in listed.stdout
    key_id = token.split("_")[1]
    rotated = expunge(tmp_path, "keys", "rotate", key_id, "--overlap-hours", "24")
    assert rotated.returncode == 0, rotated.stderr
    assert rotated.stdout.strip().splitlines()[-1].startswith(f"exp_{key_id}_")
    assert token not in rotated.stdout
    assert "works until" in rotated.stdout
    expired = expunge(tmp_path, "keys", "expire", key_id, "--days", "0")
    assert expired.stdout.startswith(f"Key {key_id} ends at ")
    assert expunge(tmp_path, "serve").stderr.startswith("Expected at least one API key")
    assert expunge(tmp_path, "keys", "revoke", key_id).returncode == 0
    refused = expunge(tmp_path, "keys", "create", "app", "--scope", "everything")
    assert refused.returncode == 1
    assert "Expected scopes among predict" in refused.stderr


def test_the_schema_of_the_database_is_shown_and_made(tmp_path: Path, expunge: Expunge) -> None:
    assert "schema none, this version has" in expunge(tmp_path, "database", "status").stdout
    assert expunge(tmp_path, "database", "upgrade").stdout.startswith(f"Schema {HEAD}; it was none.")
    assert f"schema {HEAD}, this version" in expunge(tmp_path, "database", "status").stdout


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgres://a:secret@localhost/b", "or like postgresql://user:password@host:5432/name"),
        (
            "postgresql://a:secret@127.0.0.1:9/b",
            "Expected a database that can be used at postgresql://a:***@127.0.0.1:9/b: ",
        ),
        (
            "sqlite:////nowhere/at/all.db",
            "Expected a database that can be used at sqlite:////nowhere/at/all.db: unable to open",
        ),
    ],
)
def test_a_database_that_is_not_there_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, said: str, expunge: Expunge
) -> None:
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", url)
    result = expunge(tmp_path, "keys", "list")
    assert result.returncode == 1
    assert said in result.stderr
    assert "secret" not in result.stderr
    assert "Traceback" not in result.stderr


def test_a_file_that_is_no_certificate_is_not_valid(tmp_path: Path, expunge: Expunge) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"hello": 1}))
    result = expunge(tmp_path, "verify", str(path))
    assert result.returncode == 1
    assert "NOT valid" in result.stdout


def test_an_unreachable_service_is_one_sentence(tmp_path: Path, expunge: Expunge) -> None:
    result = expunge(tmp_path, "erase", "s31", "--key", "exp_a_b", "--url", "http://127.0.0.1:9")
    assert result.returncode == 1
    assert result.stderr.startswith("Expected the service at http://127.0.0.1:9")


def test_what_was_not_checked_has_a_status_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expunge: Expunge
) -> None:
    """1 says that what was checked does not hold."""
    absent = str(tmp_path / "absent")
    for command in (("rerun-check", absent, "--key", absent), ("rerun", "nothing"), ("rerun", "\udcff")):
        result = expunge(tmp_path, *command)
        assert result.returncode == 2, result.stderr
        assert result.stderr.startswith("Expected")
        assert "Traceback" not in result.stderr
    assert expunge(tmp_path, "data", "check").returncode == 1  # there is no table, which is the first rule
    monkeypatch.setenv("EXPUNGE_DATABASE_URL", "sqlite:////nowhere/at/all.db")
    assert expunge(tmp_path, "data", "check").returncode == 2
    monkeypatch.setenv("EXPUNGE_API_WORKERS", "0")
    assert expunge(tmp_path, "data", "check").returncode == 2


def test_a_character_that_the_terminal_lacks_ends_no_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "ascii")
    assert real(tmp_path, "keys", "create", "Zoë", "--scope", "predict").returncode == 0
    listed = real(tmp_path, "keys", "list")
    assert (listed.returncode, "Zo\\xeb" in listed.stdout) == (0, True)
    refused = real(tmp_path, "keys", "revoke", "\udcff")
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("place", ["", "CONSOLE_"])
def test_up_says_at_once_that_a_port_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, expunge: Expunge
) -> None:
    free, _ = free_ports(2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for name in ("", "CONSOLE_"):
            port = taken.getsockname()[1] if name == place else free
            monkeypatch.setenv(f"EXPUNGE_{name}PORT", str(port))
        done = expunge(tmp_path / "home", "up")
    assert done.returncode == 1
    assert f"Set another EXPUNGE_{place}HOST or EXPUNGE_{place}PORT" in done.stderr
    assert not (tmp_path / "home" / "data").exists()
