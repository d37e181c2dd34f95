"""What a privacy officer keeps: the receipt of a call, the register of all requests."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Final
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict

from service.console import queries, register
from service.console.rendering import Pages
from service.console.sessions import Visitor, visitor_of
from service.context import Context
from service.requests.views import receipt
from service.store.engine import reading

At = Annotated[Visitor, Depends(visitor_of)]
Day = Annotated[date | None, BeforeValidator(lambda text: text or None)]
MOST_ON_PAGE: Final = 2000
ORDER: Final = "The requests are in the order of the user ids of the call: the first is the first one's, and so on."


class Span(BaseModel):
    """The days, in UTC, on which requests were received; none: no bound."""

    model_config = ConfigDict(frozen=True)

    since: Day = None
    until: Day = None

    @property
    def query(self) -> str:
        """The same span as a link's query."""
        given = {name: str(day) for name, day in (("since", self.since), ("until", self.until)) if day}
        return f"?{urlencode(given)}" if given else ""


@dataclass(frozen=True)
class Counts:
    """Figures above the register."""

    n_all: int
    n_in_time: int
    n_late: int
    n_open: int


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
    def entries_of(visitor: Visitor, span: Span) -> list[register.Entry]:
        now = context.now()
        with reading(context.engine) as s:
            rows = queries.received(s, visitor.client, span.since, span.until)
        return [register.entry_of(row, now) for row in rows]

    @router.get("/register")
    def register_page(request: Request, visitor: At, span: Annotated[Span, Query()]) -> Response:
        entries = entries_of(visitor, span)
        by = Counter(entry.in_time for entry in entries)
        n_open = sum(entry.ended_at is None for entry in entries)
        shown: dict[str, Any] = {
            "entries": entries[:MOST_ON_PAGE], "n_more": max(0, len(entries) - MOST_ON_PAGE), "span": span,
            "counts": Counts(len(entries), by[True], by[False], n_open),
        }  # fmt: skip
        return pages.page(request, visitor, "register.html", **shown)

    @router.get("/register/file")
    def register_file(visitor: At, span: Annotated[Span, Query()]) -> Response:
        content = register.as_csv(entries_of(visitor, span))
        return attachment("\ufeff" + content, f"register-{context.now():%Y-%m-%d}.csv", "text/csv; charset=utf-8")


def attachment(content: str, name: str, media_type: str) -> Response:
    """A file to keep."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)
