"""`bentoml build` packs the serving process, and what it packed serves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service import auth, deployment
from service.context import Context
from service.db import session
from service.processes import Processes, free_ports
from service.serving_process import serve_command
from service.settings import Settings
from tests.service.versions import add_version, picture

pytestmark = pytest.mark.journey

ROOT = Path(__file__).resolve().parents[2]


def test_the_built_bento_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(home=tmp_path / "home", port=free_ports(1)[0], api_workers=1)
    context = Context.open(settings)
    deployment.activate_first(context, digest := add_version(context, 1))
    with session(context.engine) as s:
        _, key = auth.create_key(s, name="b", scopes=[auth.PREDICT], now=context.now(), key_id="b")
        s.commit()
    command, environment = serve_command(settings)
    built = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--output", "tag"],
        env={**os.environ, "BENTOML_HOME": environment["BENTOML_HOME"], "BENTOML_DO_NOT_TRACK": "True"},
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    tag = next(word for word in built.stdout.split() if "expunge:" in word).removeprefix("__tag__:")
    at = command.index("service.app:Expunge")
    bento = [*command[:at], tag, *command[at + 3 :]]  # without the working folder of the sources
    with Processes(settings) as processes:
        monkeypatch.setattr("service.processes.serve_command", lambda _: (bento, environment))
        monkeypatch.chdir(tmp_path)
        processes.start_serving()
        client = httpx.Client(
            base_url=f"http://127.0.0.1:{settings.port}",
            headers={"Authorization": f"Bearer {key}", "Content-Type": "image/png"},
        )

        def ready() -> bool:
            try:
                return client.get("/v1/health/ready").status_code == 200
            except httpx.TransportError:
                return False

        processes.wait_until(ready, "the bento to serve", 90)
        answer = client.post("/v1/predictions", content=picture(1))
        assert answer.status_code == 200, answer.text
        assert answer.json()["model_version"] == digest
        (child,) = _children(processes)
        assert "bentos" in os.readlink(f"/proc/{child}/cwd")  # from the packed sources, not from these
        client.close()
    context.engine.dispose()


def _children(processes: Processes) -> list[int]:
    parent = processes.serving
    assert parent is not None
    return [int(pid) for pid in Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()]
