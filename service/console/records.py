"""What a privacy officer keeps: the receipt of a call, the register of all requests."""

from __future__ import annotations

import json
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Query, Request, Response

from service.console import queries, register
from service.console.rendering import Pages
from service.console.sessions import Visitor, visitor_of
from service.context import Context
from service.requests.views import receipt
from service.store.engine import reading

At = Annotated[Visitor, Depends(visitor_of)]
MOST_ON_PAGE: Final = 2000
ORDER: Final = "The requests are in the order of the user ids of the call: the first is the first one's, and so on."


def add_records(router: APIRouter, context: Context, pages: Pages) -> None:
    """The routes."""
    _add_receipts(router, context, pages)
    _add_register(router, context, pages)


def _add_receipts(router: APIRouter, context: Context, pages: Pages) -> None:
    @router.get("/receipts/{batch_id}")
    def receipt_page(request: Request, visitor: At, batch_id: str, done: str = "") -> Response:
        filed = receipt(context, visitor.client, batch_id)
        return pages.page(request, visitor, "receipt.html", filed=filed, is_new=done == "filed", order=ORDER)

    @router.get("/receipts/{batch_id}/file")
    def receipt_file(visitor: At, batch_id: str) -> Response:
        filed = receipt(context, visitor.client, batch_id)
        content = json.dumps({"order": ORDER, **filed.model_dump(mode="json")}, indent=2) + "\n"
        return attachment(content, f"receipt-{batch_id[:8]}.json", "application/json")


def _add_register(router: APIRouter, context: Context, pages: Pages) -> None:
    @router.get("/register")
    def register_page(request: Request, visitor: At, span: Annotated[queries.Span, Query()]) -> Response:
        now = context.now()
        with reading(context.engine) as s:
            rows = queries.received(s, visitor.client, span, MOST_ON_PAGE)
            counts = queries.register_counts(s, visitor.client, span, now)
        return pages.page(
            request, visitor, "register.html", span=span, counts=counts, n_more=counts.n_all - len(rows),
            entries=[register.entry_of(row, now) for row in rows],
        )  # fmt: skip

    @router.get("/register/file")
    def register_file(visitor: At, span: Annotated[queries.Span, Query()]) -> Response:
        now = context.now()
        with reading(context.engine) as s:
            rows = queries.received(s, visitor.client, span)
        content = register.as_csv(register.entry_of(row, now) for row in rows)
        return attachment("\ufeff" + content, f"register-{now:%Y-%m-%d}.csv", "text/csv; charset=utf-8")


def attachment(content: str, name: str, media_type: str) -> Response:
    """A file to keep."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)
