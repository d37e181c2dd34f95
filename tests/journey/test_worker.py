"""The worker as a process: two of them, what it waits for, how it ends, and another version of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import auth, intake
from service.auth import Client
from service.context import LINE, Context
from service.db import reading
from service.processes import Processes, environment, free_ports
from service.schemas import Filing
from service.settings import Settings
from service.tables import ErasureRequest, OpenLine, WorkerLease
from tests.faults.home import POLICY, make_home, people

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

SECONDS = 240  # for what takes a few on a quiet machine
CLIENT = Client("operator", "operator", frozenset(auth.SCOPES))
OTHER_VERSION = "from service import cli, worker; worker.WORKFLOW_VERSION = 'other'; cli.main()"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home whose runs take a second."""
    settings = make_home(tmp_path_factory.mktemp("made") / "home", n_subjects=24, seed=1)
    shutil.rmtree(settings.packed_folder)
    shutil.rmtree(settings.data_folder / ".packed")  # says where the packs of this very folder lie
    return settings


@pytest.fixture
def settings(made: Settings, tmp_path: Path) -> Settings:
    """Settings of a fresh copy of it."""
    shutil.copytree(made.home, tmp_path / "home")
    home = tmp_path / "home"
    changed: dict[str, Any] = {
        "home": home,
        "policy": str(home / "policy.json"),
        "jobs": 2,
        "console_port": free_ports(1)[0],
    }
    return made.model_copy(update=changed)


@contextmanager
def opened(settings: Settings) -> Iterator[Context]:
    context = Context.open(settings)
    yield context
    context.engine.dispose()


def lease_of(context: Context) -> WorkerLease:
    with reading(context.engine) as s:
        return s.get_one(WorkerLease, LINE)


def lines(settings: Settings) -> list[dict[str, Any]]:
    """What the worker logged."""
    log = (settings.home / "logs" / "worker.log").read_text()
    return [json.loads(line) for line in log.splitlines() if line.startswith("{")]


def has_said(settings: Settings, event: str) -> bool:
    return any(line["event"] == event for line in lines(settings))


def file(context: Context) -> str:
    """A request of somebody in the training split; gives its id."""
    filing = Filing(user_ids=people(context.settings)[:1])
    return intake.file_requests(context, CLIENT, filing, n_subjects=lambda: 20, most_open=9).requests[0].id


def state_of(context: Context, request_id: str) -> str:
    with reading(context.engine) as s:
        return s.get_one(ErasureRequest, request_id).state


def run_worker(settings: Settings) -> subprocess.Popen[bytes]:
    """A worker that is expected to end by itself."""
    command = [sys.executable, "-m", "service.cli", "worker"]
    return subprocess.Popen(command, env=environment(settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_of_two_workers_with_two_homes_one_works(settings: Settings, tmp_path: Path) -> None:
    """On one machine and one database, by whose URL each is told of it."""
    url = settings.effective_database_url
    other = settings.model_copy(
        update={"home": tmp_path / "other", "database_url": url, "console_port": free_ports(1)[0]}
    )
    shutil.copytree(settings.keys_folder, other.keys_folder)
    with opened(settings) as context, Processes(settings) as first, Processes(other) as second:
        first.start_worker()
        first.wait_until(lambda: has_said(settings, "worker.ready"), "the first worker", SECONDS)
        held = lease_of(context)
        refused = run_worker(other)
        said, _ = refused.communicate()
        assert f"Expected no other worker on model line '{LINE}', found process {held.pid}" in " ".join(
            said.decode().split()
        )
        assert refused.returncode == 1
        first.check()
        assert lease_of(context).holder == held.holder
        assert first.worker is not None
        first.worker.kill()
        second.start_worker()
        second.wait_until(lambda: has_said(other, "worker.ready"), "the second worker", SECONDS)
        assert second.worker is not None
        assert lease_of(context).pid == second.worker.pid


def test_a_worker_without_its_object_store_says_so_and_goes_on_when_it_is_back(
    settings: Settings, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "store"
    in_the_way.write_text("a file where a folder is expected")
    settings = settings.model_copy(update={"storage_url": f"file://{in_the_way}/expunge"})
    with opened(settings) as context, Processes(settings) as processes:
        processes.start_worker()

        def waits_for() -> str | None:
            with reading(context.engine) as s:
                row = s.get(WorkerLease, LINE)
            return row and row.waits_for

        processes.wait_until(lambda: waits_for() == "Shared storage", "the worker to wait", SECONDS)
        held = lease_of(context)
        processes.wait_until(lambda: lease_of(context).heartbeat_at > held.heartbeat_at, "a heartbeat", SECONDS)
        metrics = httpx.get(f"http://127.0.0.1:{settings.console_port}/metrics", timeout=30).text
        assert 'expunge_worker_waits_since_timestamp_seconds{reason="Shared storage"}' in metrics
        assert not has_said(settings, "worker.ready")
        in_the_way.unlink()
        processes.wait_until(lambda: has_said(settings, "worker.ready"), "the worker to go on", SECONDS)
        processes.wait_until(lambda: waits_for() is None, "the worker to say so", SECONDS)
        assert lease_of(context).holder == held.holder


def test_sigterm_ends_the_step_that_is_under_way_with_the_worker(settings: Settings) -> None:
    """A worker that waited for the end of its step would work on without a lease."""
    endless = {**POLICY, "n_models": 1_000_000}
    Path(settings.policy).write_text(json.dumps(endless))
    with opened(settings) as context, Processes(settings) as processes:
        file(context)
        processes.start_worker()
        banks = settings.banks_folder
        processes.wait_until(lambda: any(banks.rglob("*.row")), "a reference model", SECONDS)
        assert processes.worker is not None
        processes.worker.send_signal(signal.SIGTERM)
        assert processes.worker.wait(SECONDS) == 0
        with reading(context.engine) as s:
            assert s.get(OpenLine, LINE) is not None
        lease = lease_of(context)
        assert lease.lease_until > lease.heartbeat_at  # its end is what frees the line


@pytest.mark.parametrize("point", ["unlearning.references_built", "deploying.pointer", "purging.images"])
def test_a_run_that_another_version_began_begins_anew(settings: Settings, point: str) -> None:
    with opened(settings) as context, Processes(settings) as processes:
        request_id = file(context)
        processes.start_worker(EXPUNGE_FAIL_AT=point)
        assert processes.worker is not None
        assert processes.worker.wait(SECONDS) == -signal.SIGKILL
        command = [sys.executable, "-c", OTHER_VERSION, "worker"]
        processes.worker = processes._start(command, environment(settings), "worker.log")
        processes.wait_until(lambda: state_of(context, request_id) == "completed", "the request's end", SECONDS)
        assert has_said(settings, "run.begins_anew")
