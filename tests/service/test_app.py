"""The BentoML module, in processes of its own: importing BentoML changes a process. The rest is a journey."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def run(tmp_path):
    """Runs a program that may import the app, as the parent process would; gives its words."""

    def start(program: str) -> list[str]:
        environment = {**os.environ, "EXPUNGE_HOME": str(tmp_path / "home"), "EXPUNGE_API_WORKERS": "3"}
        environment |= {"BENTOML_HOME": str(tmp_path / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
        command = [sys.executable, "-c", program]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
        )
        return done.stdout.split()

    return start


def test_the_parent_process_opens_nothing(run, tmp_path):
    found = run("import sys, service.app; print('torch' in sys.modules, service.app.Expunge.name)")
    assert found == ["False", "expunge"]
    assert not (tmp_path / "home").exists()


def test_what_bentoml_would_do_per_request_is_off(run):
    program = """if True:
        from service.app import Expunge
        config = Expunge.config
        print(config["workers"], config["metrics"]["enabled"], config["logging"]["access"]["enabled"],
              config["tracing"]["excluded_urls"], config["threads"])
    """
    assert run(program) == ["3", "False", "False", "['.*']", "1"]
