"""Pages that change something: the form that files requests, and decisions. The functions are the API's own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import zip_longest
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Form, Request, Response
from pydantic import ValidationError

from service.console.reading_pages import GROUNDS, REGULATIONS, models_page, request_page
from service.console.rendering import Pages, going_to
from service.console.sessions import Visitor, sender_of, visitor_of
from service.context import Context
from service.errors import ConflictError, ExpungeError, InvalidInputError
from service.http.problems import validation_errors
from service.keys import api_keys
from service.models import rollbacks
from service.requests import decisions, intake
from service.requests.head_count import people_held
from service.requests.schemas import Decision, Extension, Filing, Rejection

At = Annotated[Visitor, Depends(visitor_of)]
Sender = Annotated[Visitor, Depends(sender_of)]
Text = Annotated[str, Form()]
Tick = Annotated[bool, Form()]
FIELDS = {
    "user_ids": "User ids", "case_references": "Case references", "regulation": "Law", "ground": "Ground",
    "requested_at": "Asked on", "received_at": "Received on", "callback_url": "Callback URL",
    "legal_hold": "Legal hold",
}  # fmt: skip


def add_acting_pages(router: APIRouter, context: Context, pages: Pages) -> None:
    """The routes."""
    _add_filing(router, context, pages)
    _add_decisions(router, context, pages)
    _add_rollback(router, context, pages)


def _add_filing(router: APIRouter, context: Context, pages: Pages) -> None:
    def form(request: Request, visitor: Visitor, values: dict[str, Any], refused: tuple[str, ...] = ()) -> Response:
        return pages.page(
            request, visitor, "file.html", status=422 if refused else 200, values=values, refused=refused,
            regulations=REGULATIONS, grounds=GROUNDS, form_id=context.new_id(), hold=context.settings.hold,
            n_people_most=context.settings.mass_deletion_share,
            oldest=(context.now() - intake.OLDEST_RECEIPT).date() + timedelta(days=1),
        )  # fmt: skip

    @router.get("/file")
    def empty_form(request: Request, visitor: At) -> Response:
        visitor.client.demand(api_keys.WRITE)
        return form(request, visitor, {})

    @router.post("/file")
    def file_requests(
        *,
        request: Request,
        sender: Sender,
        user_ids: Text = "",
        case_references: Text = "",
        regulation: Text = "gdpr",
        ground: Text = "unspecified",
        requested_at: Text = "",
        received_at: Text = "",
        callback_url: Text = "",
        legal_hold: Tick = False,
        form_id: Text = "",
    ) -> Response:
        sender.client.demand(api_keys.WRITE)
        values = {
            **_people(user_ids, case_references),
            "regulation": regulation,
            "ground": ground,
            "requested_at": _moment(requested_at, context.now()),
            "received_at": _moment(received_at, context.now()),
            "callback_url": callback_url.strip() or None,
            "legal_hold": legal_hold,
        }
        typed = {
            **values,
            "user_ids": user_ids,
            "case_references": case_references,
            "requested_at": requested_at,
            "received_at": received_at,
        }
        try:
            filed = intake.file_requests(
                context, sender.client, Filing.model_validate(values),
                n_subjects=lambda: people_held(context),
                most_open=context.settings.most_open_requests,
                idempotency_key=f"console-{form_id}" if form_id else None,
            )  # fmt: skip
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            return form(request, sender, typed, _sentences(found))
        except ExpungeError as error:
            if error.status not in (422, 429):
                raise
            return form(request, sender, typed, (error.detail,))
        return going_to(request, f"/receipts/{quote(filed.batch_id)}?done=filed")


def _add_decisions(router: APIRouter, context: Context, pages: Pages) -> None:
    def decided(request: Request, sender: Visitor, request_id: str, done: str, decide: Any) -> Response:
        """Carry a decision out; if it is refused, the request's page says why."""
        try:
            decide()
        except (ConflictError, InvalidInputError) as error:
            return request_page(
                request, sender, context, pages, request_id, refused=error.detail, status=error.status
            )  # fmt: skip
        except ValidationError as error:
            refused = " ".join(_sentences(error.errors(include_url=False, include_input=False)))
            return request_page(request, sender, context, pages, request_id, refused=refused, status=422)
        return going_to(request, f"/requests/{quote(request_id)}?done={done}")

    @router.post("/requests/{request_id}/cancel")
    def cancel(request: Request, sender: Sender, request_id: str) -> Response:
        client = sender.client.demand(api_keys.WRITE)
        return decided(request, sender, request_id, "cancelled", lambda: decisions.cancel(context, client, request_id))

    @router.post("/requests/{request_id}/extend")
    def extend(request: Request, sender: Sender, request_id: str, reason: Text = "") -> Response:
        client = sender.client.demand(api_keys.ADMIN)
        return decided(
            request, sender, request_id, "extended",
            lambda: decisions.extend(context, client, request_id, Extension(reason=reason)),
        )  # fmt: skip

    @router.post("/requests/{request_id}/approve")
    def approve(
        request: Request,
        sender: Sender,
        request_id: str,
        reason: Text = "",
        whole_batch: Tick = False,
    ) -> Response:
        client, batch_id = sender.client.demand(api_keys.ADMIN), request_id.rpartition("-")[0]

        def decide() -> object:
            decision = Decision(reason=reason)
            if whole_batch:
                return decisions.approve_batch(context, client, batch_id, decision)
            return decisions.approve(context, client, request_id, decision)

        return decided(request, sender, request_id, "approved", decide)

    @router.post("/requests/{request_id}/reject")
    def reject(
        *, request: Request, sender: Sender, request_id: str, legal_reason: Text = "", explanation: Text = "",
        whole_batch: Tick = False,
    ) -> Response:  # fmt: skip
        client, batch_id = sender.client.demand(api_keys.ADMIN), request_id.rpartition("-")[0]

        def decide() -> object:
            rejection = Rejection.model_validate({"legal_reason": legal_reason, "explanation": explanation})
            if whole_batch:
                return decisions.reject_batch(context, client, batch_id, rejection)
            return decisions.reject(context, client, request_id, rejection)

        return decided(request, sender, request_id, "rejected", decide)


def _add_rollback(router: APIRouter, context: Context, pages: Pages) -> None:
    @router.post("/models/{digest}/rollback")
    def roll_back(request: Request, sender: Sender, digest: str, reason: Text = "") -> Response:
        client = sender.client.demand(api_keys.ADMIN)
        try:
            rollbacks.order(context, client, digest, Decision(reason=reason).reason)
        except ConflictError as error:
            return models_page(request, sender, context, pages, refused=error.detail, status=error.status)
        except ValidationError as error:
            refused = " ".join(_sentences(error.errors(include_url=False, include_input=False)))
            return models_page(request, sender, context, pages, refused=refused, status=422)
        return going_to(request, "/models")


def _people(user_ids: str, case_references: str) -> dict[str, list[Any] | None]:
    """User ids and the case references of their lines, without lines in which neither stands."""
    lines = zip_longest(user_ids.splitlines(), case_references.splitlines(), fillvalue="")
    pairs = [(user_id.strip(), case_reference.strip() or None) for user_id, case_reference in lines]
    pairs = [pair for pair in pairs if any(pair)]
    given = [case_reference for _, case_reference in pairs]
    return {"user_ids": [user_id for user_id, _ in pairs], "case_references": given if any(given) else None}


def _moment(day: str, now: datetime) -> str | datetime | None:
    """A date of the form as a moment: its beginning, in UTC; today's is now."""
    if not day:
        return None
    try:
        at = datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        return day  # refused by the model, with its own sentence
    return now if at.date() == now.date() else at


def _sentences(found: Any) -> tuple[str, ...]:
    """What does not fit, by the form's own labels; never what was typed."""
    sentences = []
    for each in validation_errors([{**error, "loc": ("body", *error["loc"])} for error in found]):
        name, _, place = each["pointer"].strip("/").partition("/")
        row = f", line {int(place) + 1}" if place.isdigit() else ""
        sentences.append(f"{FIELDS.get(name, name.replace('_', ' ').capitalize())}{row}: {each['detail']}")
    return tuple(sentences)
