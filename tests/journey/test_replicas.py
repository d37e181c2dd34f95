"""Two service instances with homes of their own and one worker, on one PostgreSQL and one object store.

They share no file. The serving homes have the keys and nothing else: no data, no weights, no banks.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from sqlmodel import select

from service.context import Context
from service.keys import api_keys
from service.launch import Processes, free_ports
from service.models import deployment, registry
from service.models.building import build_model
from service.settings import Settings
from service.store.engine import reading, session
from service.store.objects import Storage
from service.store.tables import StoredBank
from tests.journey.conftest import wait_serving
from tests.object_store import s3_bucket
from tests.postgres import PostgresServer
from unlearning.faces import read_metadata
from unlearning.models import save_weights

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

LEASE_SECONDS = 3.0
SECONDS = 240  # for what takes a few on a quiet machine


@dataclass
class Instance:
    """One machine's serving processes and a client of them."""

    settings: Settings
    processes: Processes
    client: httpx.Client

    def all_processes(self) -> list[psutil.Process]:
        """The parent process and those that answer."""
        assert self.processes.serving is not None
        parent = psutil.Process(self.processes.serving.pid)
        return [parent, *parent.children(recursive=True)]

    def predict(self, image: bytes) -> httpx.Response:
        """One prediction."""
        return self.client.post("/v1/predictions", content=image, headers={"Content-Type": "image/png"})

    def generation(self, image: bytes) -> int | None:
        """Generation that answers; none while nobody does."""
        answer = self.predict(image)
        assert answer.status_code in (200, 503), answer.text
        return int(answer.json()["generation"]) if answer.status_code == 200 else None


@dataclass
class Cluster:
    """The worker's machine, the serving ones, and what all of them share."""

    worker: Context
    processes: Processes
    instances: tuple[Instance, Instance]
    storage: Storage

    def wait(self, condition, what: str) -> None:
        self.processes.wait_until(condition, what, SECONDS)

    def erase(self, instance: Instance, person: str) -> dict:
        """File a request with an instance and give it as it ended."""
        filed = instance.client.post("/v1/erasure-requests", json={"user_ids": [person]})
        assert filed.status_code == 202, filed.text
        url = f"/v1/erasure-requests/{filed.json()['requests'][0]['id']}"
        ended = ("completed", "needs_attention")
        self.wait(lambda: instance.client.get(url).raise_for_status().json()["state"] in ended, "the request to end")
        return dict(instance.client.get(url).raise_for_status().json())


@pytest.fixture
def cluster(tiny_home: Path, tmp_path: Path, postgres: PostgresServer) -> Iterator[Cluster]:
    with ExitStack() as stack:
        url = f"{stack.enter_context(s3_bucket())}/service"
        database = postgres.create_database()
        stack.callback(postgres.drop_database, database)
        ports = free_ports(3)
        common = {
            "database_url": database, "storage_url": url, "lease_seconds": LEASE_SECONDS, "api_workers": 1,
            "jobs": 1, "log_format": "json", "rerun_share": 0.0,
        }  # fmt: skip
        worker, token = first_home(tiny_home, tmp_path / "worker", common | {"console_port": ports[0]})
        stack.callback(worker.engine.dispose)
        instances = []
        for name, port in zip("ab", ports[1:], strict=True):
            settings = Settings(home=tmp_path / name, port=port, **common)
            shutil.copytree(worker.settings.keys_folder, settings.keys_folder)
            processes = stack.enter_context(Processes(settings))
            processes.start_serving()
            headers = {"Authorization": f"Bearer {token}"}
            client = httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=SECONDS)
            instances.append(Instance(settings, processes, stack.enter_context(client)))
        processes = stack.enter_context(Processes(worker.settings))
        processes.start_worker()
        wait_serving(processes, worker.settings.model_copy(update={"api_workers": 2}))
        yield Cluster(worker, processes, (instances[0], instances[1]), Storage(url))


def first_home(tiny_home: Path, home: Path, common: dict) -> tuple[Context, str]:
    """The worker's home: data, keys, and the tiny model of generation 1, active in the new database; a client's key."""
    shutil.copytree(tiny_home, home)
    before = Context.open(Settings(home=home))
    digest = deployment.pointer(before).committed_digest
    trained = registry.load_checked(before, digest).manifest
    before.engine.dispose()
    for left in (*home.glob("expunge.db*"), home / "commit.word"):
        left.unlink()
    settings = Settings(home=home, recipe=str(home / "recipe.json"), policy=str(home / "policy.json"), **common)
    context = Context.open(settings)
    registry.add(context, registry.path(settings, digest), trained)
    deployment.activate_first(context, digest)
    with session(context.engine) as s:
        _, token = api_keys.create_key(s, name="operator", scopes=api_keys.SCOPES, now=context.now(), key_id="operator")
        s.commit()
    return context, token


@contextmanager
def frozen(instance: Instance) -> Iterator[None]:
    """All processes of an instance stopped, as on a machine that sleeps."""
    processes = instance.all_processes()
    try:
        for process in processes:
            process.suspend()
        instance.processes.wait_until(
            lambda: all(process.status() == psutil.STATUS_STOPPED for process in processes),
            "the instance to stop",
            SECONDS,
        )
        yield
    finally:
        for process in processes:
            process.resume()


def test_two_instances_and_a_worker_share_a_database_and_an_object_store(cluster: Cluster, tmp_path: Path) -> None:
    (a, b), context = cluster.instances, cluster.worker
    rows = read_metadata(context.settings.data_folder)
    person = next(row.user_id for row in rows if row.split == "train")
    image = next((context.settings.data_folder / row.file_name).read_bytes() for row in rows if row.split == "test")
    cluster.wait(lambda: (a.generation(image), b.generation(image)) == (1, 1), "generation 1 on both")

    # A generation reaches both, through the store alone.
    trained = registry.load_checked(context, deployment.pointer(context).committed_digest)
    model = build_model(trained)
    with torch.no_grad():
        model.fc.weight.mul_(1.01)  # other weights that still answer more than one class, as an audit needs
    save_weights(model, tmp_path / "weights")
    digest = registry.add(context, tmp_path / "weights", trained.manifest)
    barrier = deployment.deploy(context, digest, timeout_seconds=SECONDS)
    kinds = {row.pid: row.kind for row in barrier.processes}
    assert sorted(kinds.values()) == ["acknowledged", "acknowledged"]
    assert {a.generation(image), b.generation(image)} <= {2, None}  # none: a machine too busy to renew a lease
    cluster.wait(lambda: (a.generation(image), b.generation(image)) == (2, 2), "generation 2 on both")

    # One sleeps through an erasure: it is not waited for, and answers nothing old on waking.
    with ThreadPoolExecutor(1) as threads:
        with frozen(b):
            asked = threads.submit(b.predict, image)  # the kernel takes the connection; nobody reads it
            request = cluster.erase(a, person)
            assert (request["state"], request["outcome"]) == ("completed", "erased"), request
            assert not asked.done()
        late = asked.result(SECONDS)
    assert late.status_code == 503 or late.json()["generation"] == 3, late.text
    answers = [late.json().get("generation")]

    def serves_again() -> bool:
        answers.append(b.generation(image))
        return answers[-1] is not None

    cluster.wait(serves_again, "the instance to serve again")
    assert set(answers) <= {None, 3}
    assert answers[-1] == 3

    # The certificate cites those who acknowledged.
    certificate = a.client.get(f"/v1/certificates/{request['certificate_id']}").raise_for_status().json()
    assert certificate == b.client.get(f"/v1/certificates/{request['certificate_id']}").raise_for_status().json()
    digest = deployment.pointer(context).committed_digest
    payload = json.loads(base64.b64decode(certificate["envelope"]["payload"]))
    assert [row["generation"] for row in payload["predicate"]["barrier"]] == [3]  # one acknowledged; b was not counted

    # Nothing that remembers the person is left in the store, and no weights ever lay in a serving home.
    assert cluster.storage.names("models") == {f"models/{digest}.safetensors"}
    with reading(context.engine) as s:
        kept = {f"banks/{row.name}/{row.sha256}.tar" for row in s.exec(select(StoredBank))}
    assert cluster.storage.names("banks") == kept
    for instance in cluster.instances:
        home = instance.settings.home
        assert not list(home.rglob("*.safetensors"))
        assert not (home / "data").exists()
