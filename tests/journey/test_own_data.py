"""A stranger's way: a folder of pictures with a CSV, to a model that serves and can forget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.launch import Processes, free_ports
from service.settings import Settings
from tests.journey.conftest import TINY_POLICY, TINY_RECIPE, Service, tell_young_from_old, wait_serving
from tests.waiting import PATIENCE_SECONDS
from unlearning.faces import read_metadata
from unlearning.faces.sources import synthetic

pytestmark = [pytest.mark.journey, pytest.mark.timeout(1800)]  # more than all its patience


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Drawn faces as somebody else keeps them: other names of columns, one column too many, no splits."""
    folder = tmp_path / "pictures"
    synthetic.write_folder(folder, n_subjects=24, images_per_subject=6, size=(16, 16), seed=1)
    tell_young_from_old(folder / "metadata.csv")
    rows = read_metadata(folder)
    (folder / "metadata.csv").unlink()
    lines = [f"{row.file_name},2024-05-01,{row.user_id},{row.label}" for row in rows]
    (folder / "people.csv").write_text("\n".join(["picture,taken,customer,group", *lines]) + "\n")
    return folder


def expunge(settings: Settings) -> Callable[..., str]:
    """The program on a home; gives what it prints."""
    given = {f"EXPUNGE_{name.upper()}": str(getattr(settings, name)) for name in ("home", "recipe", "policy")}

    def run(*words: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", *words], env={**os.environ, **given}, capture_output=True, text=True,
            timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout if status == 0 else done.stderr

    return run


def test_a_folder_with_a_csv_becomes_a_model_that_forgets(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps(TINY_RECIPE))
    (tmp_path / "policy.json").write_text(json.dumps({**TINY_POLICY, "ladder": ["retrain"]}))
    ports = free_ports(2)
    settings = Settings(
        home=tmp_path / "home", recipe=str(tmp_path / "recipe.json"), policy=str(tmp_path / "policy.json"),
        port=ports[0], console_port=ports[1], api_workers=1,
    )  # fmt: skip
    run = expunge(settings)
    words = ("data", "import", str(pictures), "--table", str(pictures / "people.csv"), "--file", "picture")
    assert "people.csv, line 1: Expected the columns" in run(*words, status=1)
    told = run(*words, "--person", "customer", "--label", "group")
    assert "144 images" in told
    assert "every rule holds" in run("data", "check")
    assert "Generation 1" in run("train")
    person = next(row.user_id for row in read_metadata(settings.data_folder) if row.split == "train")
    assert f"1 bank: {TINY_POLICY['n_models']} models each" in run("references", "build", person)
    key = run("keys", "create", "stranger", "--scope", "predict", "--scope", "erasure:write", "--scope", "erasure:read")
    token = key.split()[-1]
    picture = next(pictures.glob("images/*.png")).read_bytes()
    with (
        Processes(settings) as processes,
        httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", timeout=PATIENCE_SECONDS) as client,
    ):
        client.headers["Authorization"] = f"Bearer {token}"
        processes.start_serving()
        processes.start_worker()
        wait_serving(processes, settings)
        answer = client.post("/v1/predictions", content=picture, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200, answer.text
        service = Service(settings, processes, client, token)
        (receipt,) = service.file(person)
        assert service.completed(receipt["id"])["outcome"] == "erased"
        after = (
            client.post("/v1/predictions", content=picture, headers={"Content-Type": "image/png"})
            .raise_for_status()
            .json()
        )
        assert after["model_version"] != answer.json()["model_version"]
    assert all(row.user_id != person for row in read_metadata(settings.data_folder))
