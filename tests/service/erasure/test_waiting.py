"""What the worker waits for, how long, and which errors end it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from dbos import error as dbos_error
from prometheus_client.parser import text_string_to_metric_families
from sqlmodel import select

from audit.policy import load_policy
from service.console.metrics import DatabaseCollector, exposition
from service.context import LINE, Context
from service.erasure.waiting import JITTER, LONGEST_REST_SECONDS, Waiting, kind_of, rest_after
from service.errors import ConflictError, StorageError, TryLaterError
from service.keys import api_keys
from service.keys.api_keys import Client
from service.requests import intake, states
from service.requests.schemas import Filing
from service.store.engine import reading, session
from service.store.tables import ErasureRequest, Run, WorkerLease
from service.worker import claim
from unlearning.errors import FacesError

pytestmark = pytest.mark.both_databases

CLIENT = Client("client", "client", frozenset(api_keys.SCOPES))
CANARY = "canary-4e1f"


def fail(error: Exception) -> Callable[[], None]:
    def do() -> None:
        raise error

    return do


def nothing() -> None:
    pass


@pytest.fixture
def waiting(context: Context) -> Waiting:
    """Of a worker that has the line."""
    now = context.now()
    with session(context.engine) as s:
        s.add(
            WorkerLease(
                line=LINE, holder="x", host="h", pid=1, fencing_token=1, heartbeat_at=now,
                lease_until=now + timedelta(seconds=10), waits_since=None,
            )
        )  # fmt: skip
        s.commit()
    return Waiting(context, random.Random(1))


def waits(context: Context) -> tuple[str | None, Any]:
    with reading(context.engine) as s:
        row = s.get_one(WorkerLease, LINE)
        return row.waits_for, row.waits_since


def shown(collector: DatabaseCollector) -> dict[str, float]:
    """The metric: Unix time by reason."""
    families = text_string_to_metric_families(exposition(collector)[0].decode())
    (family,) = [each for each in families if each.name == "expunge_worker_waits_since_timestamp_seconds"]
    return {sample.labels["reason"]: sample.value for sample in family.samples}


def test_what_is_outside_is_waited_for_and_operators_see_since_when(
    context: Context, clock: Any, waiting: Waiting, log_stream: Any
) -> None:
    began, collector = clock(), DatabaseCollector(context)
    assert waiting.attempt(fail(StorageError(f"of {CANARY}"))) > 0
    assert waits(context) == ("Shared storage", began)
    assert shown(collector) == {"Shared storage": began.timestamp()}
    clock.advance(seconds=60)
    assert waiting.attempt(fail(OSError(CANARY))) > 0
    assert waits(context) == ("Files", began)
    assert waiting.attempt(nothing) == 0
    assert waits(context) == (None, None)
    assert shown(collector) == {}
    clock.advance(seconds=60)
    waiting.attempt(fail(OSError(CANARY)))
    assert waits(context) == ("Files", clock())
    lines = log_stream.getvalue()
    assert CANARY not in lines
    assert [line in lines for line in ("worker.waits", '"waits_for":"Shared storage"', "worker.goes_on")] == [True] * 3


@pytest.mark.parametrize("error", [KeyError(CANARY), TypeError(), AttributeError(), sa.exc.InvalidRequestError()])
def test_a_mistake_of_the_program_is_not_waited_for(context: Context, waiting: Waiting, error: Exception) -> None:
    with pytest.raises(type(error)):
        waiting.attempt(fail(error))
    assert waits(context) == (None, None)


def test_rests_grow_to_a_bound_and_begin_anew_after_success(waiting: Waiting) -> None:
    assert [rest_after(n) for n in (1, 2, 3, 4, 5, 6, 10_000)] == [1, 2, 4, 8, 16, 30, 30]
    rests = [waiting.attempt(fail(OSError())) for _ in range(40)]
    for n, rest in enumerate(rests, 1):
        assert rest_after(n) <= rest <= rest_after(n) * (1 + JITTER)
    assert len(set(rests[-20:])) == 20
    assert max(rests) <= LONGEST_REST_SECONDS * (1 + JITTER)
    waiting.attempt(nothing)
    assert waiting.attempt(fail(OSError())) <= 1 + JITTER


def test_a_database_that_is_away_is_waited_for(context: Context, waiting: Waiting, clock: Any) -> None:
    lost = Waiting(Context(context.settings, nowhere(context), context.keyring, now=clock), random.Random(1))

    def ask() -> None:
        with nowhere(context).connect():
            pass

    assert lost.attempt(ask) > 0
    assert waits(context) == (None, None)


def nowhere(context: Context) -> sa.Engine:
    if context.engine.dialect.name == "sqlite":
        return sa.create_engine(f"sqlite:///{context.settings.home}/no/folder/x.db")
    return sa.create_engine("postgresql+psycopg://nobody:x@127.0.0.1:1/none")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConflictError(""), "Conflict"),
        (TryLaterError(""), "Try later"),
        (sa.exc.OperationalError("", {}, Exception()), "Database"),
        (sa.exc.TimeoutError(), "Database"),
        (sqlite3.OperationalError(), "Database"),
        (dbos_error.DBOSException(""), "Workflow store"),
        (FacesError(""), "Data folder"),
        (PermissionError(), "Files"),
    ],
)
def test_kinds_are_few_words(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


@pytest.mark.two_writers
def test_a_request_that_is_cancelled_while_it_is_claimed_ends_nobody(
    context: Context, clock: Any, waiting: Waiting
) -> None:
    policy = load_policy("standard")
    filing = Filing(user_ids=["a", "b"])
    filed = intake.file_requests(context, CLIENT, filing, n_subjects=lambda: 40, most_open=9)
    clock.advance(seconds=context.settings.hold_seconds)
    cancellations = [filed.requests[0].id]

    @sa.event.listens_for(context.engine, "before_cursor_execute")
    def _cancel(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE erasure_requests") and cancellations:
            request_id = cancellations.pop()
            with session(context.engine) as s:
                states.move(s, s.get_one(ErasureRequest, request_id), "cancelled", now=clock())
                s.commit()

    assert waiting.attempt(lambda: claim(context, policy) and None) > 0
    assert waits(context)[0] == "Conflict"
    assert waiting.attempt(lambda: claim(context, policy) and None) == 0
    with reading(context.engine) as s:
        run = s.exec(select(Run)).one()
        assert [request.run_id for request in s.exec(select(ErasureRequest).order_by(ErasureRequest.user_id))] == [
            run.id, None,
        ]  # fmt: skip
