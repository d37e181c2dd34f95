"""The worker as a process: two of them, what it waits for, how it ends, and another version of it."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.context import LINE, Context
from service.keys import api_keys
from service.keys.api_keys import Client
from service.launch import environment, free_ports
from service.requests import intake
from service.requests.schemas import Filing
from service.settings import Settings
from service.store.engine import reading
from service.store.tables import ErasureRequest, OpenLine, WorkerLease
from tests.faults.home import POLICY, make_home, people
from tests.faults.zygote import Forked, Zygote
from tests.service.tiny import forget_packs
from tests.waiting import wait_until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

SECONDS = 240  # for what takes a few on a quiet machine
CLIENT = Client("operator", "operator", frozenset(api_keys.SCOPES))
CANARY = "canary-4e1f"
MISTAKEN = f"""
from service import cli, worker
def claim(*_):
    raise KeyError("{CANARY}")
worker.claim = claim
cli.main()
"""
WORKER = "from service import cli; cli.main()"
OTHER_VERSION = "from service import cli, worker; worker.WORKFLOW_VERSION = 'other'; cli.main()"
OTHER_DBOS = "from service import cli, worker; worker.metadata.version = lambda name: '99'; cli.main()"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A home whose runs take a second."""
    settings = make_home(tmp_path_factory.mktemp("made") / "home", n_subjects=24, seed=1)
    forget_packs(settings)
    return settings


@pytest.fixture
def settings(made: Settings, tmp_path: Path) -> Settings:
    """Settings of a fresh copy of it."""
    shutil.copytree(made.home, tmp_path / "home")
    home = tmp_path / "home"
    changed = {"policy": str(home / "policy.json"), "console_port": free_ports(1)[0]}
    return made.model_copy(update={"home": home, **changed})


@contextmanager
def opened(settings: Settings) -> Iterator[Context]:
    context = Context.open(settings)
    yield context
    context.engine.dispose()


def lease_of(context: Context) -> WorkerLease:
    with reading(context.engine) as s:
        return s.get_one(WorkerLease, LINE)


def lines(settings: Settings) -> list[dict[str, Any]]:
    """What the worker logged; nothing before it has a log."""
    log = settings.home / "logs" / "worker.log"
    told = log.read_text().splitlines() if log.exists() else []
    return [json.loads(line) for line in told if line.startswith("{")]


def has_said(settings: Settings, event: str) -> bool:
    return any(line["event"] == event for line in lines(settings))


def file(context: Context) -> str:
    """A request of somebody in the training split; gives its id."""
    filing = Filing(user_ids=people(context.settings)[:1])
    return intake.file_requests(context, CLIENT, filing, n_subjects=lambda: 20, most_open=9).requests[0].id


def state_of(context: Context, request_id: str) -> str:
    with reading(context.engine) as s:
        return s.get_one(ErasureRequest, request_id).state


Start = Callable[..., subprocess.Popen[bytes]]
Fork = Callable[..., Forked]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a worker: `start(settings)`, `start(settings, "-c", program)`; further names are environment variables.

    In the session of the tests, so that it does not yield to what else the machine does.
    """
    with ExitStack() as stack:

        def begin(settings: Settings, *program: str, **variables: str) -> subprocess.Popen[bytes]:
            path = settings.home / "logs" / "worker.log"
            path.parent.mkdir(exist_ok=True)
            command = [sys.executable, *(program or ("-m", "service.cli")), "worker"]
            with path.open("ab") as log:
                process = subprocess.Popen(command, env={**environment(settings), **variables}, stdout=log, stderr=log)
            stack.callback(process.wait, SECONDS)
            stack.callback(process.kill)
            return process

        yield begin


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    with Zygote() as zygote:
        yield zygote


@pytest.fixture
def fork(zygote: Zygote) -> Iterator[Fork]:
    """Starts a worker without its imports, which are seconds: `fork(settings, program)`; whoever asks how one ends by
    itself wants `start`.
    """
    with ExitStack() as stack:

        def begin(settings: Settings, program: str = WORKER, **variables: str) -> Forked:
            log = settings.home / "logs" / "worker.log"
            worker = Forked(zygote, program, {**environment(settings), **variables}, log, ["worker"])
            stack.callback(worker.wait, SECONDS)
            stack.callback(worker.kill)
            return worker

        yield begin


def wait_while(working: subprocess.Popen[bytes] | Forked, condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition while a process works."""

    def met() -> bool:
        assert working.poll() is None, f"Expected {what} while the worker works; it ended with {working.poll()}."
        return condition()

    wait_until(met, what, seconds=SECONDS)


def test_of_two_workers_with_two_homes_one_works(settings: Settings, tmp_path: Path, fork: Fork) -> None:
    """On one machine and one database, of which both are told by its URL."""
    url = settings.effective_database_url
    other = settings.model_copy(
        update={"home": tmp_path / "other", "database_url": url, "console_port": free_ports(1)[0]}
    )
    shutil.copytree(settings.keys_folder, other.keys_folder)
    with opened(settings) as context:
        first = fork(settings)
        wait_while(first, lambda: has_said(settings, "worker.ready"), "the worker to be ready")
        held = lease_of(context)
        second = fork(other)
        assert second.wait(SECONDS) == 1
        said = (other.home / "logs" / "worker.log").read_text()
        assert f"Expected no other worker on model line '{LINE}', found process {first.pid}" in said
        assert first.poll() is None
        assert lease_of(context).holder == held.holder
        first.kill()
        third = fork(other)
        wait_while(third, lambda: has_said(other, "worker.ready"), "the worker to be ready")
        assert lease_of(context).pid == third.pid


def test_a_worker_without_its_object_store_says_so_and_goes_on_when_it_is_back(
    settings: Settings, tmp_path: Path, fork: Fork
) -> None:
    in_the_way = tmp_path / "store"
    in_the_way.write_text("a file where a folder is expected")
    settings = settings.model_copy(update={"storage_url": f"file://{in_the_way}/expunge"})
    with opened(settings) as context:
        worker = fork(settings)

        def waits_for() -> str | None:
            with reading(context.engine) as s:
                row = s.get(WorkerLease, LINE)
            return row.waits_for if row else None

        wait_while(worker, lambda: waits_for() == "Shared storage", "the worker to say for what it waits")
        held = lease_of(context)
        wait_while(worker, lambda: lease_of(context).heartbeat_at > held.heartbeat_at, "the lease to be renewed")
        metrics = httpx.get(f"http://127.0.0.1:{settings.console_port}/metrics", timeout=SECONDS).text
        assert 'expunge_worker_waits_since_timestamp_seconds{reason="Shared storage"}' in metrics
        assert not has_said(settings, "worker.ready")
        in_the_way.unlink()
        wait_while(worker, lambda: has_said(settings, "worker.ready"), "the worker to be ready")
        wait_while(worker, lambda: waits_for() is None, "the worker to wait no more")
        assert lease_of(context).holder == held.holder


def test_sigterm_ends_the_step_that_is_under_way_with_the_worker(settings: Settings, start: Start) -> None:
    """A worker that waited for the end of its step would work on without a lease."""
    endless = {**POLICY, "n_models": 1_000_000}
    Path(settings.policy).write_text(json.dumps(endless))
    with opened(settings) as context:
        file(context)
        worker = start(settings)
        wait_while(worker, lambda: any(settings.banks_folder.rglob("*.row")), "a first model")
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(SECONDS) == 0
        with reading(context.engine) as s:
            assert s.get(OpenLine, LINE) is not None
        lease = lease_of(context)
        assert lease.lease_until > lease.heartbeat_at  # its end is what frees the line


def test_a_mistake_of_the_program_ends_the_worker_and_is_told_without_its_message(
    settings: Settings, start: Start
) -> None:
    worker = start(settings, "-c", MISTAKEN)
    assert worker.wait(SECONDS) == 1
    (said,) = [line for line in lines(settings) if line["event"] == "worker.failed"]
    assert said["error"].startswith("KeyError at <string>:")
    assert CANARY not in (settings.home / "logs" / "worker.log").read_text()


@pytest.mark.parametrize(
    ("other", "point"),
    [
        (OTHER_VERSION, "unlearning.references_built"), (OTHER_VERSION, "deploying.pointer"),
        (OTHER_VERSION, "purging.images"), (OTHER_DBOS, "auditing.reported"), (OTHER_DBOS, "purging.images"),
    ],
)  # fmt: skip
def test_a_run_that_another_version_began_begins_anew(settings: Settings, other: str, point: str, fork: Fork) -> None:
    with opened(settings) as context:
        request_id = file(context)
        assert fork(settings, EXPUNGE_FAIL_AT=point).wait(SECONDS) == -signal.SIGKILL
        upgraded = fork(settings, other)
        ends = ("completed", "needs_attention")
        wait_while(upgraded, lambda: state_of(context, request_id) in ends, "the request to end")
        assert state_of(context, request_id) == "completed"
        assert has_said(settings, "run.begins_anew")
