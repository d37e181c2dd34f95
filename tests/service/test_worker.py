"""Claiming requests, and that a line has one worker."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from sqlmodel import select

from audit.policy import load_policy
from service import worker
from service.context import LINE, Context
from service.errors import StartupError
from service.keys import api_keys
from service.keys.api_keys import Client
from service.requests import intake
from service.requests.schemas import Filing
from service.store.engine import reading
from service.store.tables import ErasureRequest, LogLeaf, OpenLine, Run
from service.worker import claim

pytestmark = pytest.mark.both_databases

POLICY = load_policy("standard")
CLIENT = Client("client", "client", frozenset(api_keys.SCOPES))


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


def test_a_bar_on_figures_that_nobody_measures_is_refused_at_the_start(context: Context) -> None:
    policy = replace(POLICY, shadow_changed_max=0.05)
    with pytest.raises(StartupError, match="EXPUNGE_SHADOW_SECONDS above 0, since the policy standard has a bar"):
        worker.run_worker(context.settings, policy)


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


def test_the_nearest_deadlines_are_claimed_first(context: Context, clock: Any) -> None:
    later = file(context, "s31")
    late = file(context, "s4", received_at=clock() - timedelta(days=200))
    clock.advance(seconds=context.settings.hold_seconds)
    one = replace(context, settings=context.settings.model_copy(update={"batch_size": 1}))
    assert claim(one, POLICY) is not None
    assert states_of(context, late + later) == ["unlearning", "queued"]


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


@pytest.mark.parametrize("status", ["ERROR", "SUCCESS", "MAX_RECOVERY_ATTEMPTS_EXCEEDED", "A_STATUS_OF_A_LATER_DBOS"])
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
