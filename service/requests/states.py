"""The states of an erasure request, and the only writer of `ErasureRequest.state`.

    queued ──► unlearning ⇄ auditing ──► deploying ──► purging ──► completed
      │             └──────────── nothing was learned ────▲
      ├──► cancelled
      ├──► rejected ◄── needs_attention ◄─► every state from queued to purging

queued           waits for a run. → unlearning (a worker claimed it), cancelled (its client, in the hold window),
                 rejected (a human, with a legal reason), needs_attention (a human must look first)
unlearning       a candidate is made. → auditing, purging (no model learned from the person), needs_attention
auditing         the candidate is judged. → deploying, unlearning (the ladder's next rung), needs_attention
deploying        serving processes swap. → purging, needs_attention
purging          what remembers the person is destroyed. → completed, needs_attention
needs_attention  waits for a human and its legal clock runs on. → queued, unlearning, rejected, purging (its run had
                 begun to destroy and goes on with that)
completed, cancelled, rejected   are ends. The move there empties user id and salt; the commitment stays.

A request for a person who already has an open one *follows* it (`linked_request_id`). A follower is in its leader's
state all the time: it is never claimed and has no run, moves whenever its leader moves, and gets the leader's outcome
and certificate. By itself it can only be cancelled or rejected. When a leader is cancelled or rejected, its oldest
follower leads from there on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.orm.attributes import set_committed_value
from sqlmodel import Session, col, select

from service.callbacks import outbox
from service.errors import ConflictError
from service.store.tables import ErasureRequest, RequestEvent

MOVES: Final[Mapping[str, frozenset[str]]] = {
    "queued": frozenset({"unlearning", "cancelled", "rejected", "needs_attention"}),
    "unlearning": frozenset({"auditing", "purging", "needs_attention"}),
    "auditing": frozenset({"deploying", "unlearning", "needs_attention"}),
    "deploying": frozenset({"purging", "needs_attention"}),
    "purging": frozenset({"completed", "needs_attention"}),
    "needs_attention": frozenset({"queued", "unlearning", "rejected", "purging"}),
    "completed": frozenset(),
    "cancelled": frozenset(),
    "rejected": frozenset(),
}
STATES: Final = tuple(MOVES)
ENDS: Final = frozenset(state for state, moves in MOVES.items() if not moves)
OUTCOMES: Final = ("erased", "no_data_held")

LEGAL_HOLD: Final = "legal_hold"
"""The reason to wait of a request whose data must be kept for now."""

_ALONE = frozenset({"cancelled", "rejected"})  # moves of one request that leave its leader and followers where they are
_REQUIRED = {"completed": "outcome", "rejected": "reject_reason", "needs_attention": "attention_reason"}
_FIELDS = frozenset({"run_id", "certificate_id", "outcome", "attention_reason", "reject_reason", "legal_hold"})
_SHARED = frozenset(
    {"outcome", "certificate_id", "attention_reason", "legal_hold"}
)  # what a follower takes over from its leader


def begin(
    session: Session,
    request: ErasureRequest,
    *,
    now: datetime,
    leader: ErasureRequest | None = None,
    attention_reason: str | None = None,
) -> None:
    """Give a new request its first state and add it to the session: `queued`, or `needs_attention` for a reason.

    With a leader it starts in the leader's state and shares the leader's commitment, so that the leader's certificate
    speaks for it too.
    """
    if leader is not None:
        request.linked_request_id = leader.id
        request.commitment, request.commitment_salt = leader.commitment, leader.commitment_salt
        request.state, request.attention_reason = leader.state, leader.attention_reason
    else:
        request.state = "needs_attention" if attention_reason else "queued"
        request.attention_reason = attention_reason
    request.updated_at = now
    session.add(request)
    session.add(
        RequestEvent(request_id=request.id, at=now, to_state=request.state, note=request.attention_reason or "")
    )


def move(
    session: Session, request: ErasureRequest, to_state: str, *, now: datetime, note: str = "", **fields: Any
) -> None:
    """Move a request, and those that follow it, in the caller's transaction; log the move in the same transaction.

    The move is a compare-and-swap on the state `request` was read in: of two writers one gets the error.

    Args:
        session: transaction of the caller, who commits.
        request: as read; holds the new values afterwards.
        to_state: one of `STATES`.
        now: aware time of the move.
        note: for people; never a user id.
        fields: columns that change with the move: `run_id`, `certificate_id`, `outcome`, `attention_reason`,
            `reject_reason`, `legal_hold`.

    Raises:
        ConflictError: the move is not allowed from that state, the request follows another one, or somebody else moved
            it.
        ValueError: a field that does not move with a state, or one that the state demands is missing.
    """
    move_all(session, [(request, fields)], to_state, now=now, note=note)


def move_all(
    session: Session,
    moves: Sequence[tuple[ErasureRequest, Mapping[str, Any]]],
    to_state: str,
    *,
    now: datetime,
    note: str = "",
) -> None:
    """`move` of many requests, each with its own fields: all of them or an error, in as many statements as for one."""
    leaders: dict[str, tuple[ErasureRequest, Mapping[str, Any]]] = {}
    for request, fields in moves:
        _check(request, to_state, fields)
        leaders[request.id] = (request, fields)
    implied = _implied(to_state, now)
    _swap_all(session, [(request, {**fields, **implied}) for request, fields in moves], to_state, now=now, note=note)
    followers = _followers(session, list(leaders))  # read after the swap, whose row lock keeps new followers out
    if to_state in _ALONE:
        for leader_id in leaders:
            mine = [follower for follower in followers if follower.linked_request_id == leader_id]
            _promote(session, mine, now=now, note=f"The request it followed was {to_state}; it goes on by itself.")
        return
    shared = []
    for follower in followers:
        _, fields = leaders[follower.linked_request_id or ""]
        shared.append((follower, {name: fields[name] for name in fields.keys() & _SHARED} | implied))
    _swap_all(session, shared, to_state, now=now, note=note)


def stop(session: Session, requests: Sequence[ErasureRequest], reason: str, *, now: datetime, **fields: Any) -> None:
    """Move requests of which nothing was destroyed to `needs_attention` for a reason.

    A request with a legal hold that came while a run had the one it follows could not stop that run. Now it can: the
    one that it follows is held for this, and only a human lets it go on. Why it stopped stands in its history, where
    an approval answers the hold and no doubt.
    """
    held = asked_to_keep(session, requests)
    why = {"attention_reason": reason, **fields}
    hold = {"attention_reason": LEGAL_HOLD, "legal_hold": True, **fields}
    for is_held, values, note in ((False, why, reason), (True, hold, f"A request with a legal hold came. {reason}")):
        moves = [(each, values) for each in requests if (each.id in held) is is_held]
        move_all(session, moves, "needs_attention", now=now, note=note)


def asked_to_keep(session: Session, requests: Sequence[ErasureRequest]) -> set[str]:
    """Ids of those of some requests that an open one with a legal hold follows."""
    return {
        follower.linked_request_id or "" for follower in _followers(session, [each.id for each in requests])
        if follower.legal_hold
    }  # fmt: skip


def annotate(session: Session, request: ErasureRequest, *, now: datetime, note: str, **fields: Any) -> None:
    """Change columns of an open request without moving it, and log why; a compare-and-swap like `move`.

    Raises:
        ConflictError: the request has ended, or somebody else moved it.
    """
    if request.state in ENDS:
        raise ConflictError(f"Expected an open request, this one is {request.state}.")
    _swap(session, request, request.state, fields, now=now, note=note)


def _followers(session: Session, request_ids: Sequence[str]) -> list[ErasureRequest]:
    query = (
        select(ErasureRequest)
        .where(col(ErasureRequest.linked_request_id).in_(request_ids), col(ErasureRequest.state).not_in(ENDS))
        .order_by(col(ErasureRequest.filed_at), col(ErasureRequest.id))
    )
    return list(session.exec(query))


def _check(request: ErasureRequest, to_state: str, fields: Mapping[str, Any]) -> None:
    unknown = fields.keys() - _FIELDS
    if unknown:
        raise ValueError(f"Expected fields among {sorted(_FIELDS)}, got {sorted(unknown)}.")
    if to_state not in MOVES[request.state]:
        allowed = ", ".join(sorted(MOVES[request.state])) or "nowhere: it has ended"
        raise ConflictError(
            f"Expected a move that a request in state {request.state} may make ({allowed}), got {to_state}."
        )
    if request.linked_request_id is not None and to_state not in _ALONE:
        raise ConflictError("This request follows an earlier one of the same person and moves with it; move that one.")
    required = _REQUIRED.get(to_state)
    if required and not fields.get(required):
        raise ValueError(f"Expected {required} with a move to {to_state}.")
    if to_state == "completed" and fields["outcome"] not in OUTCOMES:
        raise ValueError(f"Expected outcome to be one of {', '.join(OUTCOMES)}, got {fields['outcome']!r}.")


def _implied(to_state: str, now: datetime) -> dict[str, Any]:
    """Columns that every move to the state sets."""
    values: dict[str, Any] = {}
    if to_state in ENDS:
        values["user_id"] = values["commitment_salt"] = None
    if to_state == "completed":
        values["completed_at"] = now
    if to_state not in ("needs_attention", "rejected"):
        values["attention_reason"] = None
    if to_state == "queued":
        values["run_id"] = None  # the run that stopped is not the one it waits for
    return values


def _swap(
    session: Session, request: ErasureRequest, to_state: str, values: Mapping[str, Any], *, now: datetime, note: str
) -> None:
    """`_swap_all` of one."""
    _swap_all(session, [(request, values)], to_state, now=now, note=note)


def _swap_all(
    session: Session,
    swaps: Sequence[tuple[ErasureRequest, Mapping[str, Any]]],
    to_state: str,
    *,
    now: datetime,
    note: str,
) -> None:
    """UPDATE … WHERE state = the one that was read, and the events; then the objects get the values.

    All swaps name the same columns, as moves to one state do.
    """
    if not swaps:
        return
    columns = {**swaps[0][1], "state": to_state, "updated_at": now}
    table = ErasureRequest.__table__  # type: ignore[attr-defined]
    statement = (
        sa.update(table)
        .where(table.c.id == sa.bindparam("request_id"), table.c.state == sa.bindparam("state_read"))
        .values({name: sa.bindparam(f"new_{name}") for name in columns})
    )  # on the table: the objects must not change unless the rows did
    changes = [(request, {**values, "state": to_state, "updated_at": now}) for request, values in swaps]
    rows = [
        {"request_id": request.id, "state_read": request.state}
        | {f"new_{name}": value for name, value in changed.items()}
        for request, changed in changes
    ]
    if session.connection().execute(statement, rows).rowcount != len(rows):
        states = ", ".join(sorted({request.state for request, _ in swaps}))
        raise ConflictError(f"The request is no longer {states}: somebody else moved it first; read it again.")
    for request, changed in changes:
        from_state = request.state
        session.add(RequestEvent(request_id=request.id, at=now, from_state=from_state, to_state=to_state, note=note))
        for name, value in changed.items():
            set_committed_value(request, name, value)
        if to_state != from_state or "due_at" in changed:  # what a callback tells
            outbox.enqueue(session, request, now=now)


def _promote(session: Session, followers: list[ErasureRequest], *, now: datetime, note: str) -> None:
    """Let the oldest follower lead the others."""
    for follower in followers:
        first = follower is followers[0]
        _swap(
            session, follower, follower.state, {"linked_request_id": None if first else followers[0].id},
            now=now, note=note if first else "The request it followed changed.",
        )  # fmt: skip
