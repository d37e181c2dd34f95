"""`expunge up` as an operator meets it: one key, shown once, and examples that can be typed as they stand."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from service.context import Context
from service.keys import api_keys
from service.settings import Settings
from service.store.engine import reading, session
from service.store.tables import ApiKey
from tests.waiting import PATIENCE_SECONDS, wait_until
from unlearning.faces import read_metadata

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

SECRET = re.compile(r"exp_[A-Za-z0-9]+_[A-Za-z0-9_-]{20,}")


@contextmanager
def up(settings: Settings, place: Path) -> Iterator[str]:
    """What `expunge up` said until both processes answered; they run while the block does."""
    names = ("home", "recipe", "policy", "port", "console_port", "log_format")
    given = {f"EXPUNGE_{name.upper()}": str(getattr(settings, name)) for name in names}
    env = {**os.environ, **given, "EXPUNGE_API_WORKERS": "1", "COLUMNS": "80"}
    said = place / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service.cli", "up"], env=env, stdout=output, stderr=subprocess.STDOUT
        )  # fmt: skip
        try:
            wait_until(lambda: "Ctrl-C" in said.read_text() or process.poll() is not None, "the service to be up")
            assert process.poll() is None, said.read_text()
            assert (
                "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
            )  # half a gigabyte, to watch two children
            yield said.read_text()
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_SECONDS)


def keys(settings: Settings) -> list[str]:
    """Names of the keys there are."""
    context = Context.open(settings)
    with reading(context.engine) as s:
        found = [row.name for row in api_keys.list_keys(s)]
    context.engine.dispose()
    return found


def example(said: str, name: str) -> str:
    """A command that was shown."""
    return next(line.partition(":")[2].strip() for line in said.splitlines() if line.startswith(f"{name}:"))


def run(command: str, key: str) -> dict[str, object]:
    """The JSON that a shown command gets, typed into a shell."""
    env = {**os.environ, "EXPUNGE_KEY": key}
    done = subprocess.run(
        ["bash", "-c", command], env=env, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    return dict(json.loads(done.stdout))


def test_without_a_key_one_is_made_and_shown_once(tiny_settings: Settings, tmp_path: Path) -> None:
    context = Context.open(tiny_settings)
    with session(context.engine) as s:
        s.exec(sa.delete(ApiKey))  # type: ignore[call-overload]
        s.commit()
    context.engine.dispose()
    people = {row.user_id for row in read_metadata(tiny_settings.data_folder)}
    with up(tiny_settings, tmp_path) as said:
        (key,) = SECRET.findall(said)
        assert keys(tiny_settings) == ["operator"]
        assert not [person for person in people if person in said]
        assert "label" in run(example(said, "Predict"), key)
        erase = example(said, "Erase")
        assert "PERSON" in erase
        person = next(row.user_id for row in read_metadata(tiny_settings.data_folder) if row.split == "train")
        assert run(erase.replace("PERSON", person), key)["requests"]
        assert run(example(said, "Status"), key)["requests"]
    kept = [path for path in tiny_settings.home.rglob("*") if path.is_file() and key.encode() in path.read_bytes()]
    assert kept == []


def test_with_a_key_none_is_made_and_nothing_is_shown(tiny_settings: Settings, tmp_path: Path) -> None:
    with up(tiny_settings, tmp_path) as said:
        assert SECRET.findall(said) == []
        assert keys(tiny_settings) == ["operator"]
        assert "password" not in said
        key = (tiny_settings.home / "operator.key").read_text()
        assert "label" in run(example(said, "Predict"), key)
