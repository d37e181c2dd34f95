from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlmodel import Session, col, select

from service.context import Context
from service.errors import ConflictError, ExpungeError
from service.keys.api_keys import ADMIN, READ, WRITE, Client
from service.requests import states
from service.requests.decisions import approve, cancel, reject
from service.requests.intake import file_requests
from service.requests.schemas import Decision, Filing, Rejection, State
from service.settings import Settings
from service.store.engine import session
from service.store.tables import ErasureRequest, RequestEvent, Tombstone

pytestmark = pytest.mark.both_databases

HAPPY = ("unlearning", "auditing", "deploying", "purging", "completed")
DEMANDED = {
    "completed": {"outcome": "erased"},
    "rejected": {"reject_reason": "legal_claims: a case"},
    "needs_attention": {"attention_reason": "why"},
}


def row(context: Context, number: int = 1, **fields: object) -> ErasureRequest:
    now = context.now()
    values = {
        "id": f"batch-{number:04d}", "client_id": "client", "state": "", "user_id": "s31", "subject_hash": "h",
        "commitment": f"c{number}", "commitment_salt": f"{number:02x}", "regulation": "gdpr", "ground": "unspecified",
        "requested_at": now, "received_at": now, "filed_at": now + timedelta(seconds=number), "hold_until": now,
        "due_at": now, "updated_at": now, "completed_at": None,
    }  # fmt: skip
    return ErasureRequest(**(values | fields))


def stored(context: Context, number: int = 1, **options: object) -> ErasureRequest:
    with session(context.engine) as s:
        request = row(context, number)
        states.begin(s, request, now=context.now(), **options)  # type: ignore[arg-type]
        s.commit()
    return request


def put_in(context: Context, state: str) -> ErasureRequest:
    """A request that stands in `state`, wherever that is."""
    request = stored(context)
    path = {
        "queued": (),
        "cancelled": ("cancelled",),
        "rejected": ("rejected",),
        "needs_attention": ("needs_attention",),
    }
    with session(context.engine) as s:
        for step in path.get(state, HAPPY[: HAPPY.index(state) + 1] if state in HAPPY else ()):
            states.move(s, request, step, now=context.now(), **DEMANDED.get(step, {}))
        s.commit()
    assert request.state == state
    return request


def test_schema_and_machine_name_the_same_states() -> None:
    assert set(get_args(State)) == set(states.STATES)
    assert {"completed", "cancelled", "rejected"} == states.ENDS
    assert all(to in states.MOVES for moves in states.MOVES.values() for to in moves)


def test_a_move_is_dated_in_the_row(context: Context) -> None:
    request, later = stored(context), context.now() + timedelta(minutes=1)
    with session(context.engine) as s:
        states.move(s, request, "unlearning", now=later)
        s.commit()
    with session(context.engine) as s:
        assert s.get_one(ErasureRequest, request.id).updated_at == request.updated_at == later


@pytest.mark.parametrize("reason", [None, "A model from before learned from this person."])
def test_the_first_event_says_why_a_human_must_look_first(context: Context, reason: str | None) -> None:
    request = stored(context, attention_reason=reason)
    with session(context.engine) as s:
        (event,) = s.exec(select(RequestEvent).where(RequestEvent.request_id == request.id))
    assert (request.attention_reason, event.note) == (reason, reason or "")
    assert (event.from_state, event.to_state) == (None, "needs_attention" if reason else "queued")


@pytest.mark.parametrize("start", states.STATES)
def test_allows_the_documented_moves_and_no_other(context: Context, start: str) -> None:
    request = put_in(context, start)
    for to_state in states.STATES:
        with session(context.engine) as s:
            if to_state in states.MOVES[start]:
                again = s.get(ErasureRequest, request.id)
                assert again is not None
                states.move(s, again, to_state, now=context.now(), **DEMANDED.get(to_state, {}))
                assert again.state == to_state
            else:
                with pytest.raises(ConflictError, match=start):
                    states.move(s, request, to_state, now=context.now(), **DEMANDED.get(to_state, {}))


def test_a_move_writes_its_event_in_the_same_transaction(context: Context) -> None:
    request = stored(context)
    with session(context.engine) as s:
        states.move(s, request, "unlearning", now=context.now(), note="claimed", run_id="r1")  # never committed
    with session(context.engine) as s:
        again = s.get(ErasureRequest, request.id)
        assert again is not None
        assert (again.state, again.run_id) == ("queued", None)
        states.move(s, again, "unlearning", now=context.now(), note="claimed", run_id="r1")
        s.commit()
    with session(context.engine) as s:
        events = s.exec(select(RequestEvent).order_by(col(RequestEvent.id))).all()
    assert [(each.from_state, each.to_state, each.note) for each in events] == [
        (None, "queued", ""),
        ("queued", "unlearning", "claimed"),
    ]


def test_of_two_writers_with_the_same_view_one_moves(context: Context) -> None:
    stored(context)
    with session(context.engine) as s:
        first = s.get(ErasureRequest, "batch-0001")
    with session(context.engine) as s:
        second = s.get(ErasureRequest, "batch-0001")
    assert first is not None
    assert second is not None
    with session(context.engine) as s:
        states.move(s, first, "unlearning", now=context.now(), run_id="r1")
        s.commit()
    with session(context.engine) as s:
        with pytest.raises(ConflictError, match="no longer queued"):
            states.move(s, second, "cancelled", now=context.now())
        assert second.state == "queued"  # what was read stays what was read


@pytest.mark.parametrize("end", sorted(states.ENDS))
def test_an_end_empties_the_user_id_and_keeps_the_commitment(context: Context, end: str) -> None:
    request = put_in(context, end)
    with session(context.engine) as s:
        again = s.get(ErasureRequest, request.id)
    assert again is not None
    assert again.user_id is None
    assert again.commitment == "c1"
    assert (again.completed_at is not None) == (end == "completed")


@pytest.mark.parametrize("to_state", ["needs_attention", "rejected"])
def test_a_state_that_needs_a_reason_gets_one(context: Context, to_state: str) -> None:
    with session(context.engine) as s, pytest.raises(ValueError, match="reason"):
        states.move(s, stored(context), to_state, now=context.now())


def test_completion_needs_a_known_outcome(context: Context) -> None:
    request = put_in(context, "purging")
    with session(context.engine) as s:
        with pytest.raises(ValueError, match="outcome"):
            states.move(s, request, "completed", now=context.now())
        with pytest.raises(ValueError, match="erased, no_data_held"):
            states.move(s, request, "completed", now=context.now(), outcome="gone")


def test_fields_outside_the_move_are_refused(context: Context) -> None:
    with session(context.engine) as s, pytest.raises(ValueError, match="due_at"):
        states.move(s, stored(context), "unlearning", now=context.now(), due_at=context.now())


def test_attention_ends_with_the_move_out_of_it(context: Context) -> None:
    request = put_in(context, "needs_attention")
    with session(context.engine) as s:
        states.move(s, request, "queued", now=context.now())
    assert request.attention_reason is None
    assert request.run_id is None


def test_the_reason_that_a_request_waits_for_is_kept_until_it_goes_on(context: Context) -> None:
    """Moves set columns of their own accord; that must not wipe out the very reason the move was made for."""
    request = put_in(context, "needs_attention")
    assert request.attention_reason == "why"
    with session(context.engine) as s:
        states.move(s, request, "rejected", now=context.now(), reject_reason="legal_claims: a case")
        s.commit()
    assert (request.attention_reason, request.reject_reason) == ("why", "legal_claims: a case")


def test_a_note_changes_columns_and_is_logged_without_a_move(context: Context) -> None:
    request, due_at = stored(context), context.now() + timedelta(days=60)
    with session(context.engine) as s:
        states.annotate(s, request, now=context.now(), note="extended", due_at=due_at, extension_reason="many")
        s.commit()
    with session(context.engine) as s:
        again = s.get_one(ErasureRequest, request.id)
        assert (again.state, again.due_at, again.extension_reason) == ("queued", due_at, "many")
        event = s.exec(select(RequestEvent).order_by(col(RequestEvent.id).desc())).first()
    assert event is not None
    assert (event.from_state, event.to_state, event.note, event.at) == ("queued", "queued", "extended", context.now())


def test_a_note_is_a_compare_and_swap_too(context: Context) -> None:
    stored(context)
    with session(context.engine) as s:
        stale = s.get_one(ErasureRequest, "batch-0001")
    with session(context.engine) as s:
        states.move(s, s.get_one(ErasureRequest, "batch-0001"), "unlearning", now=context.now(), run_id="r1")
        s.commit()
    with session(context.engine) as s, pytest.raises(ConflictError, match="no longer queued"):
        states.annotate(s, stale, now=context.now(), note="extended", due_at=context.now())


@pytest.mark.parametrize("end", sorted(states.ENDS))
def test_what_has_ended_takes_no_note(context: Context, end: str) -> None:
    request = put_in(context, end)
    with session(context.engine) as s, pytest.raises(ConflictError, match=f"open request, this one is {end}"):
        states.annotate(s, request, now=context.now(), note="extended", due_at=context.now())


def followers(s: Session, leader_id: str) -> list[ErasureRequest]:
    """Requests that follow one, oldest first."""
    query = select(ErasureRequest).where(ErasureRequest.linked_request_id == leader_id)
    return list(s.exec(query.order_by(col(ErasureRequest.filed_at), col(ErasureRequest.id))))


def test_followers_are_led_by_the_one_filed_first_whatever_its_number(context: Context) -> None:
    leader = stored(context, 1)
    with session(context.engine) as s:
        for number, seconds in ((2, 20), (3, 10), (4, 10)):
            follower = row(context, number, filed_at=context.now() + timedelta(seconds=seconds))
            states.begin(s, follower, now=context.now(), leader=leader)
        assert [each.id[-1] for each in followers(s, leader.id)] == ["3", "4", "2"]
        states.move(s, leader, "cancelled", now=context.now())
        s.commit()
    with session(context.engine) as s:
        assert [each.id[-1] for each in followers(s, "batch-0003")] == ["4", "2"]
        notes = [each.note for each in s.exec(select(RequestEvent).order_by(col(RequestEvent.id)))][-3:]
    assert notes[0] == "The request it followed was cancelled; it goes on by itself."
    assert set(notes[1:]) == {"The request it followed changed."}


def test_a_follower_goes_where_its_leader_goes_and_shares_its_certificate(context: Context) -> None:
    leader = stored(context, 1)
    follower = stored(context, 2, leader=leader)
    assert (follower.linked_request_id, follower.commitment) == (leader.id, leader.commitment)
    with session(context.engine) as s:
        for step in HAPPY[:-1]:
            states.move(s, leader, step, now=context.now(), run_id="r1")
        late = row(context, 3)
        states.begin(s, late, now=context.now(), leader=leader)
        assert late.state == "purging"
        states.move(s, leader, "completed", now=context.now(), outcome="erased", certificate_id="cert")
        s.commit()
    with session(context.engine) as s:
        for request in s.exec(select(ErasureRequest)):
            assert (request.state, request.outcome, request.certificate_id) == ("completed", "erased", "cert")
            assert request.user_id is None
            assert request.run_id == ("r1" if request.id == leader.id else None)


def test_a_follower_does_not_move_alone(context: Context) -> None:
    leader = stored(context, 1)
    follower = stored(context, 2, leader=leader)
    with session(context.engine) as s:
        with pytest.raises(ConflictError, match="follows"):
            states.move(s, follower, "unlearning", now=context.now())
        states.move(s, follower, "cancelled", now=context.now())
        assert leader.state == "queued"


@pytest.mark.parametrize("end", ["cancelled", "rejected"])
def test_the_oldest_follower_leads_when_its_leader_leaves(context: Context, end: str) -> None:
    leader = stored(context, 1)
    second, third = stored(context, 2, leader=leader), stored(context, 3, leader=leader)
    with session(context.engine) as s:
        states.move(s, leader, end, now=context.now(), **DEMANDED.get(end, {}))
        s.commit()
    with session(context.engine) as s:
        second, third = (s.get(ErasureRequest, each.id) for each in (second, third))  # type: ignore[assignment]
        assert (second.state, second.linked_request_id) == ("queued", None)
        assert (third.state, third.linked_request_id) == ("queued", second.id)
        assert [each.id for each in followers(s, second.id)] == [third.id]


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["file", "hold", "mass", "forward", "stop", "cancel", "reject", "approve"]), st.integers(0, 5)
    ),
    min_size=1,
    max_size=25,
)


@given(operations=OPERATIONS)
@settings(max_examples=25, deadline=None)
def test_whatever_happens_requests_of_a_person_stay_in_order(
    contexts: Callable[..., AbstractContextManager[Context]], operations: list[tuple[str, int]]
) -> None:
    seconds = count()
    with (
        tempfile.TemporaryDirectory() as folder,
        contexts(
            Settings(home=Path(folder), hold_seconds=3600),
            lambda: datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=next(seconds)),
        ) as context,
    ):
        for operation, choice in operations:
            act(context, operation, choice)
            check_order(context)


def act(context: Context, operation: str, choice: int) -> None:
    client = Client(f"c{choice % 2}", "c", frozenset({WRITE, READ, ADMIN}))
    one, many = [f"p{choice % 3}"], ["p0", "p1", "p2"]
    calls: dict[str, Callable[[], Filing]] = {
        "file": lambda: Filing(user_ids=one),
        "hold": lambda: Filing(user_ids=one, legal_hold=True),
        "mass": lambda: Filing(user_ids=many),
    }
    if operation in calls:
        file_requests(context, client, calls[operation](), n_subjects=lambda: 3, most_open=100)
        return
    with session(context.engine) as s:
        requests = s.exec(select(ErasureRequest).order_by(col(ErasureRequest.filed_at), col(ErasureRequest.id))).all()
    if not requests:
        return
    request = requests[choice % len(requests)]
    owner = Client(request.client_id, "c", client.scopes)
    try:
        if operation == "cancel":
            cancel(context, owner, request.id)
        elif operation == "reject":
            reject(context, client, request.id, Rejection(legal_reason="other", explanation="no"))
        elif operation == "approve":
            approve(context, client, request.id, Decision(reason="yes"))
        else:
            with session(context.engine) as s:
                ahead = dict(zip(("queued", *HAPPY), HAPPY, strict=False))
                to_state = "needs_attention" if operation == "stop" else ahead.get(request.state, "queued")
                states.move(s, request, to_state, now=context.now(), **DEMANDED.get(to_state, {}))
                s.commit()
    except ExpungeError:
        pass  # refused: nothing may have changed, which the check after this sees


def check_order(context: Context) -> None:
    with session(context.engine) as s:
        requests = {request.id: request for request in s.exec(select(ErasureRequest))}
        tombstones = set(s.exec(select(Tombstone.subject_hash)))
        events = s.exec(select(RequestEvent).order_by(col(RequestEvent.id))).all()
    by_person: dict[str, list[ErasureRequest]] = {}
    for request in requests.values():
        by_person.setdefault(request.subject_hash, []).append(request)
        if request.state in states.ENDS:
            assert request.user_id is None
            continue
        assert request.user_id is not None
        if request.linked_request_id is not None:
            leader = requests[request.linked_request_id]
            assert leader.linked_request_id is None
            assert leader.subject_hash == request.subject_hash
            assert leader.state == request.state
    for subject_hash, theirs in by_person.items():
        open_leaders = [each for each in theirs if each.state not in states.ENDS and each.linked_request_id is None]
        assert len(open_leaders) == (1 if any(each.state not in states.ENDS for each in theirs) else 0)
        wanted = any(each.state not in ("cancelled", "rejected") for each in theirs)
        assert (subject_hash in tombstones) == wanted
    last: dict[str, str | None] = {}
    for event in events:
        assert event.from_state == last.get(event.request_id)
        last[event.request_id] = event.to_state
    assert last == {request.id: request.state for request in requests.values()}
