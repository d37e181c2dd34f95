"""What people decide about a request after it was filed: cancel, extend, approve, reject. Each is one transaction."""

from __future__ import annotations

import re

from sqlmodel import Session, col, select

from service.context import Context
from service.errors import ConflictError, InvalidInputError, NotAllowedError, NotFoundError
from service.keys.api_keys import Client
from service.requests import runs, states
from service.requests.doubts import APPROVED
from service.requests.intake import MASS_DELETION, due_at, unbury
from service.requests.schemas import BatchDecided, Decision, Extension, Rejection, RequestDetail
from service.requests.views import detail, visible
from service.store.engine import fit_id, session
from service.store.tables import ErasureRequest, RequestEvent

EXTENDED_MONTHS = 3  # GDPR 12(3): one month, and two further ones


def cancel(context: Context, client: Client, request_id: str) -> RequestDetail:
    """Cancel a request of the client's own, in the hold window and while no run has claimed it.

    Raises:
        NotFoundError: no such request that the client may see.
        NotAllowedError: another client's.
        ConflictError: too late.
    """
    with session(context.engine) as s:
        request, now = visible(s, client, request_id, lock=True), context.now()
        if request.client_id != client.id:
            raise NotAllowedError("Expected a request of your own; only the client that filed a request cancels it.")
        if request.state == "queued" and now >= request.hold_until:
            raise ConflictError(
                f"Expected the hold window to be open; it closed at {request.hold_until.isoformat()} and the "
                "request may be carried out at any moment."
            )
        if request.state != "queued":
            raise ConflictError(f"Expected a queued request, this one is {request.state}.")
        subject_hash = request.subject_hash
        states.move(s, request, "cancelled", now=now, note="Cancelled by its client.")
        unbury(s, subject_hash)
        return _committed(s, context, client, request)


def extend(context: Context, client: Client, request_id: str, extension: Extension) -> RequestDetail:
    """Put a request's deadline off to three months after receipt, once, before it has passed.

    Raises:
        NotFoundError: no such request.
        ConflictError: ended, extended already, or overdue.
        InvalidInputError: the reason names the person.
    """
    with session(context.engine) as s:
        request, now = visible(s, client, request_id, lock=True), context.now()
        _refuse_naming(request, extension.reason)
        if request.extension_reason is not None:
            raise ConflictError("Expected a request that was not extended before; it can be extended once.")
        if now > request.due_at:
            raise ConflictError(f"Expected an extension before the deadline, which was {request.due_at.isoformat()}.")
        states.annotate(
            s, request, now=now, note=f"Extended by {client.id}: {extension.reason}",
            due_at=due_at(request.received_at, EXTENDED_MONTHS), extension_reason=extension.reason,
        )  # fmt: skip
        return _committed(s, context, client, request)


def approve(context: Context, client: Client, request_id: str, decision: Decision) -> RequestDetail:
    """Let a request that waits for a human go on: back to the queue, a legal hold lifted.

    If its run has begun to destroy, that run goes on instead, with all of its requests.

    Raises:
        NotFoundError: no such request.
        ConflictError: it waits for nobody, or follows another one.
        InvalidInputError: the reason names the person.
    """
    with session(context.engine) as s:
        request = visible(s, client, request_id, lock=True)
        _approve(s, context, client, request, decision)
        return _committed(s, context, client, request)


def reject(context: Context, client: Client, request_id: str, rejection: Rejection) -> RequestDetail:
    """Refuse a request on a legal ground, while nothing was erased yet.

    Raises:
        NotFoundError: no such request.
        ConflictError: a run has it, or its data were destroyed in part.
        InvalidInputError: the explanation names the person.
    """
    with session(context.engine) as s:
        request = visible(s, client, request_id, lock=True)
        _reject(s, context, client, request, rejection)
        return _committed(s, context, client, request)


def approve_batch(context: Context, client: Client, batch_id: str, decision: Decision) -> BatchDecided:
    """Approve all requests of a call that was held as a mass deletion, or none.

    Raises:
        NotFoundError: no such batch.
    """
    with session(context.engine) as s:
        held = _held(s, batch_id)
        for request in held:
            _approve(s, context, client, request, decision)
        s.commit()
    return BatchDecided(batch_id=batch_id, n_moved=len(held))


def reject_batch(context: Context, client: Client, batch_id: str, rejection: Rejection) -> BatchDecided:
    """Reject all requests of a call that was held as a mass deletion, or none.

    Raises:
        NotFoundError: no such batch.
    """
    with session(context.engine) as s:
        held = _held(s, batch_id)
        for request in held:
            _reject(s, context, client, request, rejection)
        s.commit()
    return BatchDecided(batch_id=batch_id, n_moved=len(held))


def _approve(s: Session, context: Context, client: Client, request: ErasureRequest, decision: Decision) -> None:
    _refuse_naming(request, decision.reason)
    if request.state != "needs_attention":
        raise ConflictError(f"Expected a request that needs attention, this one is {request.state}.")
    note = f"{APPROVED}{client.id}: {decision.reason}"
    if request.run_id is not None and runs.must_be_resumed(s, request.run_id):
        runs.resume(s, request.run_id, now=context.now(), note=note, legal_hold=False)
        return
    states.move(s, request, "queued", now=context.now(), note=note, legal_hold=False)


def _reject(s: Session, context: Context, client: Client, request: ErasureRequest, rejection: Rejection) -> None:
    _refuse_naming(request, rejection.explanation)
    begun = select(RequestEvent.id).where(
        RequestEvent.request_id == request.id, col(RequestEvent.to_state).in_(("deploying", "purging"))
    )
    if s.exec(begun.limit(1)).first() is not None and request.state not in states.ENDS:
        raise ConflictError("Expected a request of which nothing was carried out; approve this one to finish it.")
    subject_hash, reason = request.subject_hash, f"{rejection.legal_reason}: {rejection.explanation}"
    states.move(s, request, "rejected", now=context.now(), note=f"Rejected by {client.id}.", reject_reason=reason)
    unbury(s, subject_hash)


def _held(s: Session, batch_id: str) -> list[ErasureRequest]:
    if not fit_id(batch_id):
        raise NotFoundError("There is no such batch.")
    of_batch = select(ErasureRequest).where(col(ErasureRequest.id).startswith(f"{batch_id}-", autoescape=True))
    if s.exec(of_batch.limit(1)).first() is None:
        raise NotFoundError("There is no such batch.")
    held = of_batch.where(
        ErasureRequest.state == "needs_attention",
        ErasureRequest.attention_reason == MASS_DELETION,
        col(ErasureRequest.linked_request_id).is_(None),
    )
    return list(s.exec(held.order_by(col(ErasureRequest.id)).with_for_update()))


def _refuse_naming(request: ErasureRequest, text: str) -> None:
    """A reason stays after the user id is gone, so it must not repeat it."""
    if request.user_id is not None and re.search(rf"(?<!\w){re.escape(request.user_id)}(?!\w)", text, re.IGNORECASE):
        raise InvalidInputError("Expected a reason that does not name the person: it is kept after the erasure.")


def _committed(s: Session, context: Context, client: Client, request: ErasureRequest) -> RequestDetail:
    s.flush()
    view = detail(s, client, request, now=context.now())
    s.commit()
    return view
