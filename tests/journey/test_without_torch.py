"""With OpenVINO the processes of a real service never import torch: looked up in their own list of modules."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service.context import Context
from service.keys import api_keys
from service.launch import Processes, free_ports
from service.models import deployment, registry
from service.models.barrier import look
from service.models.deployment import deploy
from service.settings import Settings
from service.store.engine import session
from tests.service.versions import add_version, image, manifest, write_weights
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]  # more than all its patience

HEAVY = {"torch", "torchvision"}
TELLS_ITS_MODULES = """
import json, os, pathlib, signal, sys

def tell(number, frame):
    place = pathlib.Path(os.environ["MODULES_FOLDER"], str(os.getpid()))
    place.with_suffix(".new").write_text(json.dumps(sorted(sys.modules)))
    place.with_suffix(".new").replace(place)

signal.signal(signal.SIGUSR2, tell)
"""


class Watched:
    """A service whose processes write down their modules when they get a signal."""

    def __init__(self, context: Context, processes: Processes, key: str, folder: Path) -> None:
        self.context, self.processes, self.key, self.folder = context, processes, key, folder

    def pids(self) -> list[int]:
        """Every process of the service."""
        assert self.processes.serving is not None
        parent = psutil.Process(self.processes.serving.pid)
        return [parent.pid, *(child.pid for child in parent.children(recursive=True))]

    def answering(self) -> set[int]:
        """Processes that answer with the active version."""
        active = deployment.pointer(self.context).committed_generation
        return {row.pid for row in look(self.context).alive() if row.acknowledged_generation == active}

    def predict(self) -> str:
        """The version that answers."""
        answer = httpx.post(
            f"http://127.0.0.1:{self.context.settings.port}/v1/predictions", content=image(1),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "image/png"}, timeout=PATIENCE_SECONDS,
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        return str(answer.json()["model_version"])

    def modules(self) -> dict[int, set[str]]:
        """What each process has imported by now."""
        found = {}
        for pid in self.pids():
            told = self.folder / str(pid)
            told.unlink(missing_ok=True)
            os.kill(pid, signal.SIGUSR2)
            wait_until(told.exists, f"process {pid} to tell its modules")
            found[pid] = set(json.loads(told.read_text()))
        return found


@pytest.fixture
def serving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Watched]:
    (tmp_path / "told").mkdir()
    (tmp_path / "sitecustomize.py").write_text(TELLS_ITS_MODULES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MODULES_FOLDER", str(tmp_path / "told"))
    settings = Settings(home=tmp_path / "home", port=free_ports(1)[0], backend=request.param, log_format="json")
    context = Context.open(settings)
    with session(context.engine) as s:
        _, key = api_keys.create_key(s, name="t", scopes=[api_keys.PREDICT], now=context.now(), key_id="watched")
        s.commit()
    with Processes(settings) as processes:
        deployment.activate_first(context, add_version(context, 1))
        processes.start_serving()
        watched = Watched(context, processes, key, tmp_path / "told")
        processes.wait_until(lambda: len(watched.answering()) == 2, "two serving processes", PATIENCE_SECONDS)
        yield watched
    context.engine.dispose()


@pytest.mark.parametrize("serving", ["openvino"], indirect=True)
def test_torch_is_imported_neither_at_the_start_nor_at_a_swap(serving: Watched, tmp_path: Path) -> None:
    context, processes = serving.context, serving.answering()
    serving.predict()
    for pid, modules in serving.modules().items():
        assert "openvino" in modules or pid not in processes  # it is this process that computes
        assert not HEAVY & modules
    digest = add_version(context, 2)
    deploy(context, digest)
    assert serving.predict() == digest
    assert not HEAVY & set.union(*serving.modules().values())
    # registered as by PyTorch's backend or an earlier release: converted by a process that ends
    old = registry.add(context, write_weights(tmp_path / "w", 3), manifest(3))
    assert not registry.load_checked(context, old).manifest.network
    deploy(context, old)
    assert serving.predict() == old
    assert not HEAVY & set.union(*serving.modules().values())
    assert serving.answering() == processes  # the very same
    assert '"event":"network.converting"' in (context.settings.home / "logs" / "serving.log").read_text()


@pytest.mark.parametrize("serving", ["torch"], indirect=True)
def test_with_pytorch_the_serving_processes_import_no_training(serving: Watched) -> None:
    """That torch is found in the lists shows that they are looked up in the right place."""
    serving.predict()
    found = serving.modules()
    for pid in serving.answering():
        assert "torch" in found[pid]
        assert not {"unlearning.training", "unlearning.methods", "service.training.jobs", "openvino"} & found[pid]


def test_what_serves_by_openvino_imports_no_torch_at_module_level() -> None:
    modules = "service.serving.process, service.inference.openvino_model, service.serving.speedups.fair_connections"
    code = f"import sys, {modules}; print(*{HEAVY!r} & sys.modules.keys())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    assert not done.stdout.split()
