"""Settings from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import Settings


def test_variables_set_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path))
    monkeypatch.setenv("EXPUNGE_API_WORKERS", "3")
    settings = Settings()
    assert settings.api_workers == 3
    assert settings.data_folder == tmp_path / "data"
    assert settings.effective_database_url == f"sqlite:///{tmp_path}/expunge.db"


def test_they_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


def test_a_variable_set_to_nothing_means_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(f"EXPUNGE_{name.upper()}", raising=False)
    defaults = Settings()
    for name in Settings.model_fields:
        monkeypatch.setenv(f"EXPUNGE_{name.upper()}", "")
    assert Settings() == defaults


@pytest.mark.parametrize("value", ["inf", "nan", "1e300"])
@pytest.mark.parametrize("name", [name for name, field in Settings.model_fields.items() if field.annotation is float])
def test_numbers_that_no_clock_or_share_holds_are_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"EXPUNGE_{name.upper()}", value)
    with pytest.raises(ValidationError):
        Settings()


@pytest.mark.parametrize(("name", "value"), [("port", "70000"), ("api_workers", "0"), ("mass_deletion_share", "0"),
    ("path_prefix", "faces"), ("path_prefix", "/faces/"), ("console_path_prefix", "/a//b"), ("trusted_proxies", "*"),
    ("trusted_proxies", "127.0.0.1, proxy.example.org")])  # fmt: skip
def test_values_out_of_range_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(f"EXPUNGE_{name.upper()}", value)
    with pytest.raises(ValidationError):
        Settings()


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_the_former_name_of_a_priority_still_means_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXPUNGE_TRAINING_PRIORITY", "idle")
    assert Settings().training_priority == "auto"
