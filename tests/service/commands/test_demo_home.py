"""The demo has a service of its own, whatever the environment says of a real one."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.commands.demo_home import demo_settings, own
from service.errors import StartupError
from service.launch import environment, serve_command
from service.settings import Settings

ELSEWHERE = {
    "database_url": "postgresql://a:b@db.example/real",
    "workflow_database_url": "postgresql://a:b@db.example/workflows",
    "storage_url": "s3://bucket/real",
    "cluster": "ray://cluster.example:10001",
    "local": "/srv/real/local",
    "tuned": "/srv/real/tuned.json",
    "policy": "/srv/real/policy.json",
    "recipe": "/srv/real/recipe.json",
    "otlp_endpoint": "http://traces.example:4318",
    "callback_allow": "inside.example",
    "callback_ca_file": "/srv/real/ca.pem",
    "host": "0.0.0.0",  # noqa: S104
    "console_host": "0.0.0.0",  # noqa: S104
    "port": "80",
    "console_port": "81",
    "fail_at": "purging.begun",
}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings of a real service, by environment and file."""
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path / "real"))
    for name, value in ELSEWHERE.items():
        monkeypatch.setenv(f"EXPUNGE_{name.upper()}", value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text(
        "EXPUNGE_DATABASE_URL=sqlite:////srv/real.db\nEXPUNGE_STORAGE_URL=s3://bucket/file\n"
    )
    return Settings()


def test_it_points_to_nothing_of_the_real_service(elsewhere: Settings, tmp_path: Path) -> None:
    demo, aside = demo_settings(elsewhere, ports=(4001, 4002))
    own_home = tmp_path / "demo" / "service"
    assert demo.home == own_home
    assert demo.effective_database_url == f"sqlite:///{own_home / 'expunge.db'}"
    assert demo.effective_workflow_database_url == f"sqlite:///{own_home / 'workflows.db'}"
    given = demo.model_dump()
    for name, value in ELSEWHERE.items():
        assert str(given[name]) != value, name
    for value in given.values():
        assert "real" not in str(value) or str(value).startswith(str(tmp_path))
    assert {"EXPUNGE_DATABASE_URL", "EXPUNGE_STORAGE_URL", "EXPUNGE_RECIPE"} <= set(aside)


def test_nor_do_its_processes(elsewhere: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    demo, _ = demo_settings(elsewhere, ports=(4001, 4002))
    for given in (environment(demo), serve_command(demo)[1]):
        with monkeypatch.context() as child:
            for name in ELSEWHERE:
                child.delenv(f"EXPUNGE_{name.upper()}")
            for name, value in given.items():
                if name.startswith("EXPUNGE_"):
                    child.setenv(name, value)
            assert Settings() == demo


def test_what_concerns_this_machine_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXPUNGE_HOME", str(tmp_path / "real"))
    monkeypatch.setenv("EXPUNGE_DEVICE", "cpu")
    monkeypatch.setenv("EXPUNGE_JOBS", "3")
    demo, aside = demo_settings(Settings(), ports=(4001, 4002))
    assert (demo.device, demo.jobs, aside) == ("cpu", 3, [])


def test_it_deletes_only_a_folder_of_its_own(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    own(place)
    (place / "service").mkdir()
    own(place)  # again
    other = tmp_path / "elsewhere"
    other.mkdir()
    own(other)  # empty
    real = tmp_path / "real"
    (real / "service").mkdir(parents=True)
    with pytest.raises(StartupError, match="move it away"):
        own(real)
    (tmp_path / "link").symlink_to(place)
    with pytest.raises(StartupError, match="move it away"):
        own(tmp_path / "link")
