"""Claiming requests, and that a line has one worker."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlmodel import select

from audit.policy import load_policy
from service import auth, intake, worker
from service.auth import Client
from service.barrier import this_host
from service.context import LINE, Context
from service.db import reading, session
from service.errors import StartupError
from service.schemas import Filing
from service.tables import ErasureRequest, LogLeaf, OpenLine, Run, WorkerLease
from service.worker import Lease, claim, is_alive

pytestmark = pytest.mark.both_databases

POLICY = load_policy("standard")
CLIENT = Client("client", "client", frozenset(auth.SCOPES))


def file(context: Context, *user_ids: str, **fields: Any) -> list[str]:
    """File requests of a client; gives their ids."""
    filed = intake.file_requests(
        context, CLIENT, Filing(user_ids=list(user_ids), **fields), n_subjects=lambda: 40, most_open=1000
    )
    return [receipt.id for receipt in filed.requests]


def states_of(context: Context, ids: list[str]) -> list[str]:
    with reading(context.engine) as s:
        return [s.get_one(ErasureRequest, request_id).state for request_id in ids]


def test_requests_wait_for_the_end_of_their_hold_window(context: Context, clock: Any) -> None:
    ids = file(context, "s31")
    assert claim(context, POLICY) is None
    clock.advance(seconds=context.settings.hold_seconds)
    run_id = claim(context, POLICY)
    assert run_id is not None
    assert states_of(context, ids) == ["unlearning"]


def test_waiting_requests_become_one_run_and_later_ones_wait(context: Context, clock: Any) -> None:
    first = file(context, "s31", "s4")
    clock.advance(seconds=context.settings.hold_seconds)
    later = file(context, "s2")
    clock.advance(seconds=context.settings.hold_seconds - 1)
    run_id = claim(context, POLICY)
    clock.advance(seconds=5)
    assert claim(context, POLICY) is None
    assert states_of(context, first + later) == ["unlearning", "unlearning", "queued"]
    with reading(context.engine) as s:
        assert s.get_one(OpenLine, LINE).run_id == run_id
        leaf = s.exec(select(LogLeaf)).one()
        assert s.get_one(Run, run_id).policy_digest == POLICY.digest
    assert leaf.kind == "policy"
    assert POLICY.digest in leaf.entry


def test_a_legal_hold_is_never_claimed(context: Context, clock: Any) -> None:
    file(context, "s31", legal_hold=True)
    clock.advance(days=10)
    assert claim(context, POLICY) is None


def test_one_person_asked_for_twice_is_claimed_once(context: Context, clock: Any) -> None:
    ids = file(context, "s31") + file(context, "s31")
    clock.advance(seconds=context.settings.hold_seconds)
    claim(context, POLICY)
    with reading(context.engine) as s:
        assert [s.get_one(ErasureRequest, request_id).linked_request_id for request_id in ids] == [None, ids[0]]
    assert states_of(context, ids) == ["unlearning", "unlearning"]


def test_company_is_waited_for_within_the_window(contexts: Callable[..., Any], clock: Any, settings: Any) -> None:
    patient = settings.model_copy(update={"hold_seconds": 0.0, "batch_window_seconds": 60.0})
    with contexts(patient, clock) as context:
        file(context, "s31")
        assert claim(context, POLICY) is None
        clock.advance(seconds=61)
        assert claim(context, POLICY) is not None


def test_a_second_worker_is_refused_while_the_first_lives(context: Context, clock: Any) -> None:
    with Lease(context):
        with pytest.raises(StartupError, match=f"found process {os.getpid()}"), Lease(context):
            pass
        clock.advance(seconds=60)
        with reading(context.engine) as s:
            token = s.get_one(WorkerLease, LINE).fencing_token
    with Lease(context), reading(context.engine) as s:
        assert s.get_one(WorkerLease, LINE).fencing_token == token + 1


def test_a_dead_workers_lease_does_not_bind(context: Context) -> None:
    with session(context.engine) as s:
        now = context.now()
        dead = WorkerLease(
            line=LINE, holder="x", host=this_host(), pid=2**22 - 1, fencing_token=7, heartbeat_at=now,
            lease_until=now + timedelta(seconds=60),
        )  # fmt: skip
        s.add(dead)
        s.commit()
    with Lease(context):
        pass


def test_this_process_is_alive_and_an_impossible_one_is_not() -> None:
    assert is_alive(os.getpid())
    assert not is_alive(2**22 - 1)


def other_machine(context: Context, *, seconds: float) -> None:
    """The lease of a worker elsewhere, for so many seconds from now."""
    now = context.now()
    with session(context.engine) as s:
        s.merge(
            WorkerLease(
                line=LINE, holder="x", host="elsewhere", pid=1, fencing_token=7, heartbeat_at=now,
                lease_until=now + timedelta(seconds=seconds),
            )
        )  # fmt: skip
        s.commit()


class Steady:
    """A clock that only sleeping moves, and what happens then."""

    def __init__(self, on_sleep: Callable[[], None] = lambda: None) -> None:
        self.at, self._on_sleep = 0.0, on_sleep

    def __call__(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        self._on_sleep()


def test_a_silent_lease_of_another_machine_is_taken_after_its_length_whatever_the_wall_clocks_say(
    context: Context,
) -> None:
    other_machine(context, seconds=86_400)  # its clock is a day ahead, or ours was set back by one
    steady = Steady()
    with Lease(context, steady=steady, sleep=steady.sleep), reading(context.engine) as s:
        assert s.get_one(WorkerLease, LINE).fencing_token == 8
    assert 10.0 <= steady.at <= 12.0


def test_a_lease_that_another_machine_renews_is_respected(context: Context, clock: Any) -> None:
    other_machine(context, seconds=86_400)

    def renew() -> None:
        clock.advance(seconds=1)
        other_machine(context, seconds=86_400)

    steady = Steady(renew)
    with (
        pytest.raises(StartupError, match="found process 1 on elsewhere"),
        Lease(context, steady=steady, sleep=steady.sleep),
    ):
        pass


def test_a_dead_worker_of_this_machine_binds_nobody_though_the_clock_was_set_back(context: Context) -> None:
    now = context.now()
    with session(context.engine) as s:
        s.add(
            WorkerLease(
                line=LINE, holder="x", host=this_host(), pid=os.getpid(), fencing_token=7, heartbeat_at=now,
                lease_until=now + timedelta(days=1),
            )
        )  # fmt: skip
        s.commit()
    with Lease(context):
        pass


@pytest.mark.parametrize("status", ["ERROR", "SUCCESS", "MAX_RECOVERY_ATTEMPTS_EXCEEDED"])
def test_a_run_whose_workflow_ended_without_it_needs_attention(
    context: Context, clock: Any, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    ids = file(context, "s31")
    clock.advance(seconds=context.settings.hold_seconds)
    claim(context, POLICY)
    monkeypatch.setattr(worker.DBOS, "get_workflow_status", lambda _: SimpleNamespace(status=status))
    for _ in range(2):
        worker.start_open_run(context, None)  # type: ignore[arg-type]
    assert states_of(context, ids) == ["needs_attention"]
    with reading(context.engine) as s:
        assert s.get(OpenLine, LINE) is None
