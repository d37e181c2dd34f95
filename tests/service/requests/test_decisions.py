from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlmodel import select

from service.context import Context
from service.errors import ConflictError, InvalidInputError, NotAllowedError, NotFoundError
from service.keys.api_keys import ADMIN, AUDIT, Client
from service.requests import states
from service.requests.decisions import approve, approve_batch, cancel, extend, reject, reject_batch
from service.requests.intake import file_requests
from service.requests.schemas import Decision, Extension, Filing, Rejection
from service.store.engine import reading, session
from service.store.tables import ErasureRequest, Tombstone
from tests.waiting import at_once

pytestmark = pytest.mark.both_databases

Person = Callable[..., Client]
YES = Decision(reason="Confirmed by telephone.")
NO = Rejection(legal_reason="legal_claims", explanation="Evidence in an open case.")
LATER = Extension(reason="Many requests in one week.")


def file(context: Context, client: Client, *ids: str, **options: Any) -> list[str]:
    filing = Filing.model_validate({"user_ids": list(ids), **options})
    filed = file_requests(context, client, filing, n_subjects=lambda: 40, most_open=2000)
    return [receipt.id for receipt in filed.requests]


def stand(context: Context, request_id: str, *path: str) -> None:
    """Move a request along a path."""
    demanded = {"needs_attention": {"attention_reason": "stopped"}, "completed": {"outcome": "erased"}}
    with session(context.engine) as s:
        request = s.get(ErasureRequest, request_id)
        assert request is not None
        for step in path:
            states.move(s, request, step, now=context.now(), **demanded.get(step, {}))
        s.commit()


def tombstones(context: Context) -> int:
    with reading(context.engine) as s:
        return len(s.exec(select(Tombstone)).all())


def test_cancelling_in_the_hold_window(context: Context, clock: Any, person: Person) -> None:
    (request_id,) = file(context, person(), "s31")
    clock.advance(seconds=3599)
    view = cancel(context, person(), request_id)
    assert (view.state, view.cancellable, view.events[-1].to_state) == ("cancelled", False, "cancelled")
    assert tombstones(context) == 0
    with pytest.raises(ConflictError, match="cancelled"):
        cancel(context, person(), request_id)


def test_cancelling_too_late(context: Context, clock: Any, person: Person) -> None:
    closed, claimed = file(context, person(), "s1"), file(context, person(), "s2")
    stand(context, claimed[0], "unlearning")
    with pytest.raises(ConflictError, match="unlearning"):
        cancel(context, person(), claimed[0])
    clock.advance(seconds=3600)
    with pytest.raises(ConflictError, match="hold window"):
        cancel(context, person(), closed[0])
    assert tombstones(context) == 2


def test_only_its_client_cancels(context: Context, person: Person) -> None:
    (request_id,) = file(context, person("a"), "s31")
    with pytest.raises(NotFoundError):
        cancel(context, person("b"), request_id)
    with pytest.raises(NotAllowedError):
        cancel(context, person("b", "erasure:write", AUDIT), request_id)


def test_a_cancelled_request_leaves_the_tombstone_that_another_needs(
    context: Context, clock: Any, person: Person
) -> None:
    (first,) = file(context, person("a"), "s31")
    clock.advance(seconds=1)
    (second,) = file(context, person("b"), "s31")
    cancel(context, person("a"), first)
    assert tombstones(context) == 1
    view = cancel(context, person("b"), second)
    assert view.linked_request_id is None
    assert tombstones(context) == 0


def test_cancel_and_claim_at_once_never_both_win(context: Context, person: Person) -> None:
    for number in range(15):
        (request_id,) = file(context, person(), f"s{number}")
        with reading(context.engine) as s:
            seen = s.get(ErasureRequest, request_id)
        assert seen is not None
        won: list[str] = []

        def claim(seen: ErasureRequest = seen, won: list[str] = won) -> None:
            with session(context.engine) as s:
                try:
                    states.move(s, seen, "unlearning", now=context.now(), run_id="r")
                except ConflictError:
                    return
                s.commit()
                won.append("claim")

        def withdraw(request_id: str = request_id, won: list[str] = won) -> None:
            try:
                cancel(context, person(), request_id)
            except ConflictError:
                return
            won.append("cancel")

        at_once(claim, withdraw)
        with reading(context.engine) as s:
            after = s.get(ErasureRequest, request_id)
        assert after is not None
        assert len(won) == 1
        assert after.state == {"claim": "unlearning", "cancel": "cancelled"}[won[0]]


def test_extending_adds_two_months_once(context: Context, person: Person) -> None:
    (request_id,) = file(context, person(), "s31")
    view = extend(context, person("boss", ADMIN), request_id, LATER)
    assert view.due_at == datetime(2026, 4, 30, 12, 0, tzinfo=UTC)  # from 31 January
    assert (view.state, view.extension_reason) == ("queued", LATER.reason)
    assert "boss" in view.events[-1].note
    with pytest.raises(ConflictError, match="once"):
        extend(context, person("boss", ADMIN), request_id, LATER)


def test_an_overdue_or_ended_request_cannot_be_extended(context: Context, clock: Any, person: Person) -> None:
    late, ended = file(context, person(), "s1", "s2")
    cancel(context, person(), ended)
    with pytest.raises(ConflictError, match="cancelled"):
        extend(context, person("boss", ADMIN), ended, LATER)
    clock.advance(days=29)
    with pytest.raises(ConflictError, match="deadline"):
        extend(context, person("boss", ADMIN), late, LATER)


@pytest.mark.parametrize("reason", ["s31 asked for more", "about S31.", "Concerning (s31)"])
def test_a_reason_does_not_name_the_person(context: Context, person: Person, reason: str) -> None:
    (request_id,) = file(context, person(), "s31", legal_hold=True)
    boss = person("boss", ADMIN)
    for decide, body in (
        (extend, Extension(reason=reason)),
        (approve, Decision(reason=reason)),
        (reject, Rejection(legal_reason="other", explanation=reason)),
    ):
        with pytest.raises(InvalidInputError, match="does not name the person"):
            decide(context, boss, request_id, body)  # type: ignore[operator]
    extend(context, boss, request_id, Extension(reason="Case s310 comes first."))


def test_approving_lifts_a_legal_hold(context: Context, person: Person) -> None:
    (request_id,) = file(context, person(), "s31", legal_hold=True)
    view = approve(context, person("boss", ADMIN), request_id, YES)
    assert (view.state, view.legal_hold, view.attention_reason) == ("queued", False, None)
    with pytest.raises(ConflictError, match="queued"):
        approve(context, person("boss", ADMIN), request_id, YES)


def test_approving_sends_a_stopped_run_s_request_back_to_the_queue(context: Context, person: Person) -> None:
    (request_id,) = file(context, person(), "s31")
    stand(context, request_id, "unlearning", "auditing", "needs_attention")
    assert approve(context, person("boss", ADMIN), request_id, YES).state == "queued"
    with reading(context.engine) as s:
        request = s.get(ErasureRequest, request_id)
    assert request is not None
    assert request.run_id is None


def test_a_follower_is_not_approved_alone(context: Context, clock: Any, person: Person) -> None:
    (leader,) = file(context, person(), "s31", legal_hold=True)
    clock.advance(seconds=1)
    (follower,) = file(context, person(), "s31")
    with pytest.raises(ConflictError, match="follows"):
        approve(context, person("boss", ADMIN), follower, YES)
    approve(context, person("boss", ADMIN), leader, YES)
    with reading(context.engine) as s:
        assert {request.state for request in s.exec(select(ErasureRequest))} == {"queued"}


def test_rejecting_keeps_the_ground_and_frees_the_person(context: Context, person: Person) -> None:
    (request_id,) = file(context, person(), "s31")
    view = reject(context, person("boss", ADMIN), request_id, NO)
    assert (view.state, view.reject_reason) == ("rejected", "legal_claims: Evidence in an open case.")
    assert tombstones(context) == 0
    with pytest.raises(ConflictError, match="rejected"):
        reject(context, person("boss", ADMIN), request_id, NO)


def test_what_was_begun_is_not_rejected(context: Context, person: Person) -> None:
    claimed, stopped = file(context, person(), "s1", "s2")
    stand(context, claimed, "unlearning")
    stand(context, stopped, "unlearning", "auditing", "deploying", "needs_attention")
    with pytest.raises(ConflictError, match="unlearning"):
        reject(context, person("boss", ADMIN), claimed, NO)
    with pytest.raises(ConflictError, match="approve this one"):
        reject(context, person("boss", ADMIN), stopped, NO)


@pytest.mark.parametrize(("decide", "body", "state"), [(approve_batch, YES, "queued"), (reject_batch, NO, "rejected")])
def test_a_held_batch_is_decided_whole(context: Context, person: Person, decide: Any, body: Any, state: str) -> None:
    ids = file(context, person(), *(f"p{n}" for n in range(9)))
    other = file(context, person(), *(f"q{n}" for n in range(9)))
    batch_id, boss = ids[0].rpartition("-")[0], person("boss", ADMIN)
    assert decide(context, boss, batch_id, body).n_moved == 9
    assert decide(context, boss, batch_id, body).n_moved == 0
    with reading(context.engine) as s:
        states_now = {request.id: request.state for request in s.exec(select(ErasureRequest))}
    assert {states_now[each] for each in ids} == {state}
    assert {states_now[each] for each in other} == {"needs_attention"}


@pytest.mark.parametrize("batch_id", ["nothing", "%", "_", "", "a" * 100, "\x00"])
def test_no_such_batch(context: Context, person: Person, batch_id: str) -> None:
    file(context, person(), *(f"p{n}" for n in range(9)))
    with pytest.raises(NotFoundError):
        approve_batch(context, person("boss", ADMIN), batch_id, YES)


def test_a_batch_decision_that_fails_for_one_moves_none(context: Context, person: Person) -> None:
    ids = file(context, person(), *(f"p{n}" for n in range(9)))
    with pytest.raises(InvalidInputError):
        approve_batch(context, person("boss", ADMIN), ids[0].rpartition("-")[0], Decision(reason="All but p8."))
    with reading(context.engine) as s:
        assert {request.state for request in s.exec(select(ErasureRequest))} == {"needs_attention"}
