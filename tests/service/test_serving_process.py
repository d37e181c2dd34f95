from __future__ import annotations

import os
import sys

from service.serving_process import serve_command
from service.settings import Settings


def test_settings_travel_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "/elsewhere")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    settings = Settings(home="relative/home", port=4000, api_workers=3, lease_seconds=2.5, log_format="json")
    arguments, environment = serve_command(settings)
    assert arguments[:5] == [sys.executable, "-m", "bentoml", "serve", "service.app:Expunge"]
    assert arguments[arguments.index("--port") + 1] == "4000"
    home = str(tmp_path / "relative" / "home")
    assert environment["EXPUNGE_HOME"] == home  # the processes work in another folder
    assert environment["BENTOML_HOME"].startswith(home)
    assert environment["BENTOML_DO_NOT_TRACK"] == "True"
    assert environment["OMP_NUM_THREADS"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
    assert "PROMETHEUS_MULTIPROC_DIR" not in environment
    for name, value in environment.items():
        if name.startswith("EXPUNGE_"):
            monkeypatch.setenv(name, value)
    assert Settings() == settings.model_copy(update={"home": settings.home.resolve()})
