"""Homes for tests with real processes: a tiny one whose models train in a moment, made once and copied."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlmodel import select

from service.context import Context
from service.keys import api_keys
from service.launch import Processes, free_ports
from service.settings import Settings
from service.store.engine import reading, session
from service.store.tables import ServingWorker
from service.training.production import train_production
from tests.waiting import PATIENCE_SECONDS
from unlearning.faces.sources import synthetic

RUN_SECONDS = 480.0  # for what takes ten on a quiet machine
TINY_RECIPE = {
    "name": "tiny", "architecture": "small_resnet", "image_size": [16, 16], "channels": 3, "width": 8, "epochs": 10,
    "batch_size": 32, "learning_rate": 0.1, "flip": True, "dtype": "float32",
}  # fmt: skip
TINY_POLICY = {
    "name": "tiny", "n_models": 20, "retain_ratio_min": 0.5, "test_ratio_min": 0.5, "exchangeability_alpha": 0.1,
    "forgetting_ratio_min": 0.9, "cost_share_max": 0.01, "ladder": ["finetune", "retrain"], "retrain_attempts": 6,
    "gate_alpha": 0.01,
}  # fmt: skip
"""Fine-tuning cannot pass at one per cent of retraining's cost, so that every run sees a failed audit, too. Of six true
retrains each is rejected with probability ≤ 0.1, so the run ends without a model less often than once in a million."""


@dataclass
class Service:
    """A running service and a client of it."""

    settings: Settings
    processes: Processes
    client: httpx.Client
    key: str

    def request(self, request_id: str) -> dict[str, Any]:
        """The request as its client sees it."""
        answer = self.client.get(f"/v1/erasure-requests/{request_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def file(self, *user_ids: str) -> list[dict[str, Any]]:
        """File requests; gives the receipts."""
        answer = self.client.post("/v1/erasure-requests", json={"user_ids": list(user_ids)})
        assert answer.status_code == 202, answer.text
        return list(answer.json()["requests"])

    def completed(self, request_id: str, seconds: float = RUN_SECONDS) -> dict[str, Any]:
        """Wait for the request's end and give it."""
        self.processes.wait_until(
            lambda: self.request(request_id)["state"] in ENDS, f"request {request_id} to end", seconds
        )
        return self.request(request_id)


ENDS = ("completed", "needs_attention", "rejected", "cancelled")


def tell_young_from_old(table: Path) -> None:
    """Two classes instead of ten age groups: a task that twenty people are enough to learn."""
    header, *lines = table.read_text().splitlines()
    rows = [line.split(",") for line in lines]
    middle = sorted({row[2] for row in rows})[4]
    for row in rows:
        row[2] = "young" if row[2] <= middle else "old"
    table.write_text("\n".join([header, *map(",".join, rows)]) + "\n")


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with 24 drawn people, a trained model of generation 1 and the key of an operator."""
    home = tmp_path_factory.mktemp("tiny")
    (home / "recipe.json").write_text(json.dumps(TINY_RECIPE))
    (home / "policy.json").write_text(json.dumps(TINY_POLICY))
    settings = Settings(home=home, recipe=str(home / "recipe.json"), policy=str(home / "policy.json"))
    synthetic.write_folder(settings.data_folder, n_subjects=24, images_per_subject=6, size=(16, 16), seed=1)
    tell_young_from_old(settings.data_folder / "metadata.csv")
    context = Context.open(settings)
    train_production(context, seed=0)
    with session(context.engine) as s:
        _, token = api_keys.create_key(s, name="operator", scopes=api_keys.SCOPES, now=context.now(), key_id="operator")
        s.commit()
    (home / "operator.key").write_text(token)
    context.engine.dispose()
    return home


def copy_of(tiny_home: Path, home: Path) -> Settings:
    """Settings of a fresh copy of the tiny home, with as few processes as there can be: each imports torch."""
    shutil.copytree(tiny_home, home)
    ports = free_ports(2)
    return Settings(
        home=home, recipe=str(home / "recipe.json"), policy=str(home / "policy.json"), port=ports[0],
        console_port=ports[1], log_format="json", api_workers=1, jobs=1,
    )  # fmt: skip


@pytest.fixture
def tiny_settings(tiny_home: Path, tmp_path: Path) -> Settings:
    """Settings of a fresh copy of the tiny home."""
    return copy_of(tiny_home, tmp_path / "home")


def wait_serving(processes: Processes, settings: Settings) -> None:
    """Until every serving process answers with a model."""
    context = Context.open(settings)

    def ready() -> bool:
        with reading(context.engine) as s:
            rows = s.exec(select(ServingWorker).where(ServingWorker.lease_until > context.now())).all()
        return sum(row.acknowledged_generation >= 1 for row in rows) >= settings.api_workers

    processes.wait_until(ready, "the serving processes", RUN_SECONDS)
    context.engine.dispose()


@contextmanager
def starting(settings: Settings) -> Iterator[Callable[..., Service]]:
    """Starts a service; what it started is stopped after the block."""
    with Processes(settings) as processes, ExitStack() as clients:

        def start(**worker: str) -> Service:
            processes.start_serving()
            processes.start_worker(**worker)
            wait_serving(processes, settings)
            key = (settings.home / "operator.key").read_text()
            url = f"http://127.0.0.1:{settings.port}"
            client = clients.enter_context(
                httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_SECONDS)
            )
            return Service(settings, processes, client, key)

        yield start


@pytest.fixture
def running(tiny_settings: Settings) -> Iterator[Callable[..., Service]]:
    """Starts a service on the tiny home; what it started is stopped after the test."""
    with starting(tiny_settings) as start:
        yield start
