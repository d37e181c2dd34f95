"""Requests as their client or an auditor may see them."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import and_
from sqlmodel import Session, col, or_, select

from service.callbacks.outbox import deliveries_of
from service.context import Context
from service.errors import InvalidInputError, NotFoundError
from service.keys.api_keys import Client
from service.requests import states
from service.requests.intake import LEGAL_HOLD, MASS_DELETION, receipt_of
from service.requests.schemas import Filed, Moment, RequestDetail, RequestPage, RequestSummary, State
from service.store.engine import fit_id, reading
from service.store.tables import (
    ErasureRequest,
    RequestEvent,
    Run,
)

A_HUMAN_MUST_LOOK = "A human must look at this request."
"""What a client is told of a reason that is not its own doing: others tell what is known of the person."""


class RequestFilter(BaseModel):
    """Which requests to list."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    state: list[State] = Field([], description="Only these states; may be repeated.")
    batch_id: str | None = Field(None, max_length=80, description="Only requests filed by one call.")
    due_before: Moment | None = Field(None, description="Only requests whose deadline is earlier.")
    limit: int = Field(50, ge=1, le=200)
    cursor: str | None = Field(None, max_length=400, description="`next_cursor` of the page before.")


def visible(s: Session, client: Client, request_id: str, *, lock: bool = False) -> ErasureRequest:
    """A request, if the client may see it: its own, or any for who sees all.

    Raises:
        NotFoundError: none, or somebody else's; which of these is not said.
    """
    request = s.get(ErasureRequest, request_id, with_for_update=lock) if fit_id(request_id) else None
    if request is None or not (client.sees_all or request.client_id == client.id):
        raise NotFoundError("There is no such request among those you may see.")
    return request


def detail(s: Session, client: Client, request: ErasureRequest, *, now: datetime) -> RequestDetail:
    """A request with its history, its run's progress and its callbacks."""
    query = select(RequestEvent).where(RequestEvent.request_id == request.id).order_by(col(RequestEvent.id))
    events = [
        event.model_dump(include={"at", "from_state", "to_state"}) | {"note": note_for(client, event)}
        for event in s.exec(query)
    ]
    seen = _seen_links(s, client, [request])
    run = s.get(Run, request.run_id) if request.run_id else None
    callbacks = [
        {"state": json.loads(row.body)["data"]["state"], **row.model_dump()} for row in deliveries_of(s, request.id)
    ]
    return RequestDetail.model_validate(
        {
            **_summary(client, request, seen, now),
            "progress": run.stage_note if run and run.finished_at is None else "",
            "callbacks": callbacks,
            "events": events,
        }
    )


def receipt(context: Context, client: Client, batch_id: str) -> Filed:
    """The receipts of a call of the client's own, as its requests are now.

    Raises:
        NotFoundError: no such call of the client.
    """
    with reading(context.engine) as s:
        of_batch = col(ErasureRequest.id).startswith(f"{batch_id}-", autoescape=True)
        own = select(ErasureRequest).where(ErasureRequest.client_id == client.id, of_batch)
        rows = list(s.exec(own.order_by(col(ErasureRequest.id)))) if fit_id(batch_id) else []
        if not rows or rows[0].id != f"{batch_id}-0001":
            raise NotFoundError("There is no such call among your own.")
        seen = _seen_links(s, client, rows)
    receipts = [receipt_of(row, row.linked_request_id if row.linked_request_id in seen else None) for row in rows]
    return Filed(batch_id=batch_id, requests=receipts)


def note_for(client: Client, event: RequestEvent) -> str:
    """An event's note as the client may read it: why a run stopped, or never began, is for operators."""
    stopped = event.to_state == "needs_attention" and event.from_state not in (None, "queued", "needs_attention")
    return A_HUMAN_MUST_LOOK if stopped and not client.sees_all else event.note


def reason_for(client: Client, reason: str | None) -> str | None:
    """Why a request needs attention, as the client may read it."""
    if reason is None or client.sees_all or reason in (MASS_DELETION, LEGAL_HOLD):
        return reason
    return A_HUMAN_MUST_LOOK


def request_detail(context: Context, client: Client, request_id: str) -> RequestDetail:
    """One request."""
    with reading(context.engine) as s:
        return detail(s, client, visible(s, client, request_id), now=context.now())


def request_page(context: Context, client: Client, wanted: RequestFilter) -> RequestPage:
    """Requests that the client may see, the last filed first, `limit` at most."""
    query = select(ErasureRequest).order_by(col(ErasureRequest.filed_at).desc(), col(ErasureRequest.id))
    if not client.sees_all:
        query = query.where(ErasureRequest.client_id == client.id)
    if wanted.state:
        query = query.where(col(ErasureRequest.state).in_(wanted.state))
    if wanted.due_before is not None:
        query = query.where(ErasureRequest.due_at < wanted.due_before)
    if wanted.batch_id is not None:
        if not fit_id(wanted.batch_id):
            return RequestPage(requests=[], next_cursor=None)
        query = query.where(col(ErasureRequest.id).startswith(f"{wanted.batch_id}-", autoescape=True))
    if wanted.cursor is not None:
        at, last_id = _read_cursor(wanted.cursor)
        later = and_(col(ErasureRequest.filed_at) == at, col(ErasureRequest.id) > last_id)
        query = query.where(or_(col(ErasureRequest.filed_at) < at, later))
    with reading(context.engine) as s:
        found = list(s.exec(query.limit(wanted.limit + 1)))
        rows, now = found[: wanted.limit], context.now()
        seen = _seen_links(s, client, rows)
    summaries = [RequestSummary.model_validate(_summary(client, row, seen, now)) for row in rows]
    return RequestPage(requests=summaries, next_cursor=_cursor(rows[-1]) if len(found) > len(rows) else None)


def _summary(client: Client, request: ErasureRequest, seen: set[str], now: datetime) -> dict[str, Any]:
    is_open = request.state not in states.ENDS
    values = {name: getattr(request, name) for name in RequestSummary.model_fields if hasattr(request, name)}
    return values | {
        "batch_id": request.id.rpartition("-")[0],
        "attention_reason": reason_for(client, request.attention_reason),
        "linked_request_id": request.linked_request_id if request.linked_request_id in seen else None,
        "commitment_salt": request.commitment_salt if request.client_id == client.id else None,
        "cancellable": request.state == "queued" and now < request.hold_until and request.client_id == client.id,
        "overdue": is_open and request.due_at < now,
    }


def _seen_links(s: Session, client: Client, requests: Iterable[ErasureRequest]) -> set[str]:
    """Ids of those linked requests that the client may see."""
    linked = {request.linked_request_id for request in requests if request.linked_request_id is not None}
    if client.sees_all or not linked:
        return linked
    mine = col(ErasureRequest.client_id) == client.id
    return set(s.exec(select(ErasureRequest.id).where(col(ErasureRequest.id).in_(linked), mine)))


def _cursor(last: ErasureRequest) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.filed_at.isoformat(), last.id]).encode()).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        at_text, last_id = json.loads(base64.b64decode(cursor.encode("ascii"), altchars=b"-_", validate=True))
        at = datetime.fromisoformat(at_text)
        if at.tzinfo is None or not 2000 <= at.year < 9000 or not fit_id(last_id):
            raise ValueError
    except (binascii.Error, ValueError, TypeError, RecursionError):
        raise InvalidInputError("Expected cursor to be the next_cursor of an earlier page.") from None
    return at, last_id
