"""`bentoml build` packs the serving process and the worker's sources, and what it packed serves and erases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.launch import Processes, environment, serve_command
from service.settings import Settings
from tests.journey.conftest import TINY_POLICY, Service, wait_serving
from tests.waiting import PATIENCE_SECONDS
from unlearning.faces import read_metadata

pytestmark = [pytest.mark.journey, pytest.mark.timeout(1800)]  # more than all its patience

ROOT = Path(__file__).resolve().parents[2]


def test_the_built_bento_serves_and_erases(
    tiny_settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings
    (settings.home / "policy.json").write_text(json.dumps({**TINY_POLICY, "ladder": ["retrain"]}))
    command, given = serve_command(settings)
    built = subprocess.run(
        [sys.executable, "-m", "bentoml", "build", "--output", "tag"],
        env={**os.environ, "BENTOML_HOME": given["BENTOML_HOME"], "BENTOML_DO_NOT_TRACK": "True"},
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    tag = next(word for word in built.stdout.split() if "expunge:" in word).removeprefix("__tag__:")
    sources = Path(given["BENTOML_HOME"]) / "bentos" / tag.replace(":", "/") / "src"
    at = command.index("service.app:Expunge")
    bento = [*command[:at], tag, *command[at + 3 :]]  # without the working folder of the sources
    packed = {**environment(settings), "PYTHONPATH": str(sources)}
    rows = read_metadata(settings.data_folder)
    person = next(row.user_id for row in rows if row.split == "train")
    image = next((settings.data_folder / row.file_name).read_bytes() for row in rows if row.split == "test")
    key = (settings.home / "operator.key").read_text()
    monkeypatch.setattr("service.launch.serve_command", lambda _: (bento, given))
    monkeypatch.setattr("service.launch.environment", lambda _: packed)
    monkeypatch.chdir(tmp_path)
    with (
        Processes(settings) as processes,
        httpx.Client(
            base_url=f"http://127.0.0.1:{settings.port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=PATIENCE_SECONDS,
        ) as client,
    ):
        processes.start_serving()
        processes.start_worker()
        wait_serving(processes, settings)
        before = client.post("/v1/predictions", content=image, headers={"Content-Type": "image/png"})
        assert before.status_code == 200, before.text
        serving, worker = processes.serving, processes.worker
        assert serving is not None
        assert worker is not None
        children = Path(f"/proc/{serving.pid}/task/{serving.pid}/children").read_text().split()
        (child,) = [pid for pid in children if "bentos" in os.readlink(f"/proc/{pid}/cwd")]  # the packed sources
        assert child
        assert str(sources) in Path(f"/proc/{worker.pid}/environ").read_text()
        service = Service(settings, processes, client, key)
        (receipt,) = service.file(person)
        assert service.completed(receipt["id"])["outcome"] == "erased"
        after = (
            client.post("/v1/predictions", content=image, headers={"Content-Type": "image/png"})
            .raise_for_status()
            .json()
        )
        assert after["model_version"] != before.json()["model_version"]
    assert all(row.user_id != person for row in read_metadata(settings.data_folder))
