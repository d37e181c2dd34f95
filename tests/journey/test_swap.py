"""Two real serving processes, exchanged under traffic: swapped, killed, frozen, handed bad weights."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from safetensors.torch import load_file, save_file
from sqlmodel import select

from service.context import Context
from service.errors import WeightsError
from service.keys import api_keys
from service.launch import Processes, free_ports
from service.models import deployment, registry, shadowing
from service.models.barrier import Barrier, look
from service.models.deployment import deploy
from service.models.shadowing import compare
from service.settings import Settings
from service.store.engine import reading, session
from service.store.tables import ShadowPart
from tests.service.versions import add_version, image, manifest, pixels_of, reference_probabilities
from tests.waiting import PATIENCE_SECONDS, join, wait_until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]  # more than all its patience

N_IMAGES = 12
LEASE_SECONDS = 4.0  # ten heartbeats of a busy machine: one that starves for as long is fenced, and rightly so
TOLERANCE = 0.03  # bfloat16 beside float32


@dataclass(frozen=True)
class Answer:
    """What came back for one image; status 0 is a broken connection."""

    began: float
    ended: float
    image: int
    status: int
    body: dict
    port: int  # the client's end of the connection; 0 when it broke


class Traffic:
    """Clients that send one image after the other until told to stop."""

    def __init__(self, url: str, key: str, n_clients: int = 6) -> None:
        self._url, self._key = url, key
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(seed,), daemon=True) for seed in range(n_clients)]
        self.answers: list[Answer] = []

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            join(thread)

    def _run(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "image/png"}
        with httpx.Client(base_url=self._url, headers=headers, timeout=PATIENCE_SECONDS) as client:
            while not self._stop.is_set():
                chosen, began, status, body, port = int(rng.integers(N_IMAGES)), time.monotonic(), 0, {}, 0
                try:
                    found = client.post("/v1/predictions", content=image(chosen))
                    status, body = found.status_code, found.json()
                    port = found.extensions["network_stream"].get_extra_info("client_addr")[1]
                except httpx.TransportError:
                    pass
                self.answers.append(Answer(began, time.monotonic(), chosen, status, body, port))

    def settle(self, n: int = 30) -> None:
        """Let `n` more answers come."""
        wanted = len(self.answers) + n
        wait_until(lambda: len(self.answers) >= wanted, f"{n} more answers")


class Service:
    """The serving processes, their versions, and what each version says of each image."""

    def __init__(self, context: Context, processes: Processes, key: str) -> None:
        self.context, self.processes, self.key = context, processes, key
        self.url = f"http://127.0.0.1:{context.settings.port}"
        self._seed = 100
        self._expected: dict[str, np.ndarray] = {}

    def new_version(self, of: str = "") -> str:
        """A candidate nobody has seen yet; one `of` another says the next class of every image."""
        self._seed += 1
        digest = self._shifted(of) if of else add_version(self.context, self._seed)
        images = np.stack([pixels_of(seed) for seed in range(N_IMAGES)])
        self._expected[digest] = reference_probabilities(self.context, digest, images)
        return digest

    def _shifted(self, digest: str) -> str:
        """A version whose classes' logits are those of another one, each one place on."""
        tensors = load_file(registry.path(self.context.settings, digest))
        for name in ("fc.weight", "fc.bias"):
            tensors[name] = tensors[name].roll(1, 0).contiguous()
        path = self.context.settings.home / "shifted.safetensors"
        save_file(tensors, path)
        found = registry.add(self.context, path, manifest(self._seed))
        path.unlink()
        return found

    def check_whole(self, answers: list[Answer]) -> None:
        """Each answer's label and probabilities come from the version it names."""
        for answer in answers:
            if answer.status == 200:
                found = answer.body["probabilities"]
                expected = self._expected[answer.body["model_version"]][answer.image]
                np.testing.assert_allclose(list(found.values()), expected, atol=TOLERANCE)
                assert found[answer.body["label"]] == max(found.values())

    def pids(self) -> set[int]:
        """Processes with a running lease that answer with the active version."""
        active = deployment.pointer(self.context).committed_generation
        return {row.pid for row in look(self.context).alive() if row.acknowledged_generation == active}

    def wait_complete(self) -> None:
        """Both processes answer with the active version."""
        self.processes.wait_until(lambda: len(self.pids()) == 2, "two serving processes", 120)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    home: Path = tmp_path_factory.mktemp("swap") / "home"
    settings = Settings(home=home, port=free_ports(1)[0], lease_seconds=LEASE_SECONDS, log_format="json")
    context = Context.open(settings)
    with session(context.engine) as s:
        _, key = api_keys.create_key(s, name="t", scopes=[api_keys.PREDICT], now=datetime.now(UTC), key_id="traffic")
        s.commit()
    with Processes(settings) as processes:
        found = Service(context, processes, key)
        deployment.activate_first(context, found.new_version())
        processes.start_serving()
        found.wait_complete()
        yield found
    context.engine.dispose()


@pytest.fixture
def traffic(service: Service) -> Iterator[Traffic]:
    service.wait_complete()
    with Traffic(service.url, service.key) as traffic:
        traffic.settle()
        yield traffic


@pytest.fixture
def swap(service: Service) -> Callable[[], tuple[Barrier, float]]:
    """Deploy a new version; gives the barrier and the moment it was reached.

    The version is made now, before a test kills or freezes a process: on a busy machine that takes longer than a lease,
    and who is gone for a lease before the swap begins has no row in its barrier.
    """
    ready = service.new_version()

    def deploy_next() -> tuple[Barrier, float]:
        nonlocal ready
        digest, ready = ready, ""
        return deploy(
            service.context, digest or service.new_version(), timeout_seconds=PATIENCE_SECONDS
        ), time.monotonic()

    return deploy_next


def test_five_swaps_fail_no_request_and_nothing_older_is_answered_after_the_barrier(
    service: Service, traffic: Traffic, swap: Callable[[], tuple[Barrier, float]]
) -> None:
    before = service.pids()
    reached = []
    for _ in range(5):
        barrier, at = swap()
        reached.append((barrier.generation, at))
        assert [row.kind for row in barrier.processes] == ["acknowledged"] * 2
        assert barrier.expected == 2
        traffic.settle()
    traffic.__exit__()
    assert {answer.status for answer in traffic.answers} == {200}
    service.check_whole(traffic.answers)
    for generation, at in reached:
        # began, not ended: a client that does not get the processor reads late what was sent before the barrier
        assert all(answer.body["generation"] >= generation for answer in traffic.answers if answer.began > at)
        assert any(answer.body["generation"] == generation for answer in traffic.answers)
    assert service.pids() == before  # the very same processes


def test_altered_weights_are_refused_and_the_old_version_keeps_serving(service: Service, traffic: Traffic) -> None:
    active = deployment.pointer(service.context).committed_digest
    digest = service.new_version()
    registry.path(service.context.settings, digest).write_bytes(b"something else")
    with pytest.raises(WeightsError, match="SHA-256"):
        deploy(service.context, digest)
    traffic.settle()
    traffic.__exit__()
    assert {(answer.status, answer.body["model_version"]) for answer in traffic.answers} == {(200, active)}


def test_a_killed_process_does_not_hold_the_swap_and_returns_on_the_active_version(
    service: Service, traffic: Traffic, swap: Callable[[], tuple[Barrier, float]]
) -> None:
    victim, survivor = sorted(service.pids())
    os.kill(victim, signal.SIGKILL)
    barrier, at = swap()
    assert {row.pid: row.kind for row in barrier.processes}[survivor] == "acknowledged"
    assert {row.pid: row.kind for row in barrier.processes}[victim] == "ended"
    service.wait_complete()
    assert victim not in service.pids()
    traffic.settle()
    traffic.__exit__()
    assert {answer.status for answer in traffic.answers} <= {200, 0}
    assert sum(answer.status == 0 for answer in traffic.answers) <= 6  # the requests the killed process had
    service.check_whole(traffic.answers)
    late = [answer for answer in traffic.answers if answer.began > at and answer.status == 200]
    assert {answer.body["generation"] for answer in late} == {barrier.generation}


def test_a_process_frozen_through_a_swap_refuses_the_old_version_on_waking(
    service: Service, traffic: Traffic, swap: Callable[[], tuple[Barrier, float]]
) -> None:
    victim, survivor = sorted(service.pids())

    def is_frozen_outside_of_a_transaction() -> bool:
        """SQLite's lock of a process that is frozen within one stops everybody."""
        os.kill(victim, signal.SIGSTOP)
        wait_until(lambda: psutil.Process(victim).status() == psutil.STATUS_STOPPED, "the process to stop")
        try:
            with closing(sqlite3.connect(service.context.settings.home / "expunge.db", timeout=0)) as connection:
                connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(victim, signal.SIGCONT)
            return False
        return True

    try:
        wait_until(is_frozen_outside_of_a_transaction, "the process to be frozen")
        barrier, at = swap()
        assert {row.pid: row.kind for row in barrier.processes} == {survivor: "acknowledged", victim: "fenced"}
        held = {found.raddr.port for found in psutil.Process(victim).net_connections("tcp") if found.raddr}
        resumed = time.monotonic()
    finally:
        os.kill(victim, signal.SIGCONT)
    service.wait_complete()
    assert service.pids() == {victim, survivor}
    traffic.settle()
    traffic.__exit__()
    assert {answer.status for answer in traffic.answers} <= {200, 503}
    service.check_whole(traffic.answers)
    inside = [
        answer for answer in traffic.answers if answer.port in held and answer.began < at and answer.ended > resumed
    ]
    assert any(answer.began < at - LEASE_SECONDS / 2 for answer in inside)  # some were inside when it froze
    after = [answer for answer in traffic.answers if answer.began > at]
    assert {row.body["generation"] for row in (*inside, *after) if row.status == 200} == {barrier.generation}


COMPARE = """
    import sys
    from service.context import Context
    from service.models.shadowing import compare
    from service.settings import Settings

    compare(Context.open(Settings()), "run", sys.argv[1])
"""


def test_a_candidate_is_compared_unseen_also_over_a_killed_worker_and_a_restarted_process(
    service: Service, traffic: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says another class than the model in service of every image, so that the figures are known."""
    active = deployment.pointer(service.context)
    asked = {"shadow_seconds": PATIENCE_SECONDS, "shadow_share": 1.0, "shadow_images": 300}
    context = replace(service.context, settings=service.context.settings.model_copy(update=asked))
    for name, value in {"home": context.settings.home, **asked}.items():
        monkeypatch.setenv(f"EXPUNGE_{name.upper()}", str(value))
    candidate = service.new_version(of=active.committed_digest)
    killed: list[int] = []

    def n_counted() -> int:
        with reading(context.engine) as s:
            rows = s.exec(select(ShadowPart).where(ShadowPart.run_id == "run")).all()
        return sum(figures["images"] for row in rows for figures in row.counts.values())

    def last_look() -> None:
        worker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(COMPARE), candidate])
        try:
            wait_until(lambda: n_counted() > 0, "images to be compared")
        finally:
            worker.kill()
            worker.wait(PATIENCE_SECONDS)
        killed.append(min(service.pids()))
        os.kill(killed[0], signal.SIGKILL)
        compare(context, "run", candidate)
        assert deployment.pointer(context).committed_digest == active.committed_digest

    barrier = deploy(context, candidate, before_commit=last_look, timeout_seconds=PATIENCE_SECONDS)
    traffic.settle()
    traffic.__exit__()
    with reading(context.engine) as s:
        total = shadowing.find(s, "run").total
    assert total.images >= 300
    assert (total.labels_changed, total.failed) == (total.images, 0)
    service.check_whole(traffic.answers)
    assert {answer.status for answer in traffic.answers} <= {200, 0}
    assert {answer.body["generation"] for answer in traffic.answers if answer.status == 200} == {
        active.committed_generation, barrier.generation,
    }  # fmt: skip
    assert killed[0] not in service.pids()
