"""Service, worker and durable execution on PostgreSQL: a person is erased, and nothing is kept in SQLite."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from service.context import Context
from service.keys import api_keys
from service.launch import free_ports
from service.models import deployment, registry
from service.settings import Settings
from service.store.engine import session
from tests.journey.conftest import RUN_SECONDS, Service
from tests.journey.test_erasure import check_erased, train_person
from tests.postgres import PostgresServer

pytestmark = [pytest.mark.journey, pytest.mark.timeout(1800)]


@pytest.fixture
def tiny_settings(tiny_home: Path, tmp_path: Path, postgres: PostgresServer) -> Iterator[Settings]:
    """A copy of the tiny home whose database is PostgreSQL; it takes over the model and a key."""
    home = tmp_path / "home"
    shutil.copytree(tiny_home, home)
    before = Context.open(Settings(home=home))
    digest = deployment.pointer(before).committed_digest  # type: ignore[union-attr]
    manifest = registry.load_checked(before, digest).manifest
    before.engine.dispose()
    for left in home.glob("expunge.db*"):
        left.unlink()
    (home / "commit.word").unlink()
    url, ports = postgres.create_database(), free_ports(2)
    settings = Settings(
        home=home, recipe=str(home / "recipe.json"), policy=str(home / "policy.json"), port=ports[0],
        console_port=ports[1], log_format="json", database_url=url, api_workers=1, jobs=1,
    )  # fmt: skip
    context = Context.open(settings)
    assert registry.add(context, registry.path(settings, digest), manifest) == digest
    deployment.activate_first(context, digest)
    with session(context.engine) as s:
        _, token = api_keys.create_key(s, name="operator", scopes=api_keys.SCOPES, now=context.now(), key_id="operator")
        s.commit()
    (home / "operator.key").write_text(token)
    context.engine.dispose()
    yield settings
    postgres.drop_database(url)


def test_a_person_is_erased_on_postgresql_though_the_worker_is_killed(running: Callable[..., Service]) -> None:
    service = running(EXPUNGE_FAIL_AT="auditing.end")
    person = train_person(service)
    (receipt,) = service.file(person)
    worker = service.processes.worker
    assert worker is not None
    assert worker.wait(RUN_SECONDS) == -signal.SIGKILL
    service.processes.start_worker()
    service.completed(receipt["id"])
    check_erased(service, receipt["id"], person)
    assert not list(service.settings.home.glob("*.db*"))
    # the workflow ends a moment after the request is completed
    service.processes.wait_until(lambda: workflows_of(service) != [("PENDING",)], "the workflow to end", RUN_SECONDS)
    assert workflows_of(service) == [("SUCCESS",)]


def workflows_of(service: Service) -> list[tuple[str]]:
    """The status of every durable workflow."""
    with psycopg.connect(service.settings.database_url) as connection:
        return connection.execute("SELECT status FROM dbos.workflow_status").fetchall()
