"""What a privacy officer keeps: the receipt of a call."""

from __future__ import annotations

import json
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service.console.rendering import Pages
from service.console.sessions import Visitor, visitor_of
from service.context import Context
from service.requests.views import receipt

At = Annotated[Visitor, Depends(visitor_of)]
ORDER = "The requests are in the order of the user ids of the call: the first is the first one's, and so on."


def add_records(router: APIRouter, context: Context, pages: Pages) -> None:
    """The routes."""

    @router.get("/receipts/{batch_id}")
    def receipt_page(request: Request, visitor: At, batch_id: str, done: str = "") -> Response:
        filed = receipt(context, visitor.client, batch_id)
        return pages.page(request, visitor, "receipt.html", filed=filed, is_new=done == "filed", order=ORDER)

    @router.get("/receipts/{batch_id}/file")
    def receipt_file(visitor: At, batch_id: str) -> Response:
        filed = receipt(context, visitor.client, batch_id)
        content = json.dumps({"order": ORDER, **filed.model_dump(mode="json")}, indent=2) + "\n"
        return attachment(content, f"receipt-{batch_id[:8]}.json", "application/json")


def attachment(content: str, name: str, media_type: str) -> Response:
    """A file to keep."""
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(content, media_type=media_type, headers=headers)
