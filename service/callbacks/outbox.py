"""The outbox of callbacks: a row a move of a request, in the transaction of the move; `delivery` sends it.

Tested in `tests/service/callbacks/test_delivery.py`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from sqlmodel import Session, col, select

from service.store.tables import CallbackDelivery, ErasureRequest

PENDING, DELIVERED, DISABLED, GIVEN_UP = "pending", "delivered", "disabled", "given_up"


def enqueue(s: Session, request: ErasureRequest, *, now: datetime) -> None:
    """Put the telling of a request's present state into the caller's transaction; nothing without a callback URL."""
    if request.callback_url is None:
        return
    s.add(
        CallbackDelivery(
            request_id=request.id, url=request.callback_url, body=event_body(request, at=now), created_at=now,
            next_attempt_at=now, finished_at=None,
        )
    )  # fmt: skip


def event_body(request: ErasureRequest, *, at: datetime) -> str:
    """JSON of a move that happened at an aware time."""
    event = {
        "type": f"erasure_request.{request.state}",
        "timestamp": _rfc3339(at),
        "data": {
            "request_id": request.id,
            "case_reference": request.case_reference,
            "state": request.state,
            "outcome": request.outcome,
            "due_at": _rfc3339(request.due_at),
            "certificate_id": request.certificate_id,
        },
    }
    return json.dumps(event, separators=(",", ":"))


def deliveries_of(s: Session, request_id: str) -> list[CallbackDelivery]:
    """What was or will be told of a request, oldest first."""
    query = select(CallbackDelivery).where(CallbackDelivery.request_id == request_id)
    return list(s.exec(query.order_by(col(CallbackDelivery.id))))


def _rfc3339(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
