"""Pages and errors as HTML: templates, headers that let a page load nothing but its own files, answers to polls.

Tested in `tests/service/console/test_reading_pages.py`.
"""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, RedirectResponse
from fastapi.templating import Jinja2Templates
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from service.console import views
from service.console.sessions import COOKIE, Visitor
from service.context import Context
from service.errors import ExpungeError, NotAuthenticatedError, NotFoundError, TryLaterError
from service.http.prefix import root_of, without
from service.telemetry.redact import describe

log = structlog.get_logger(__name__)

FOLDER: Final = Path(__file__).parent
HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
LIVE_MS, IDLE_MS = 1000, 5000
"""How often a page that shows something under way is asked for anew, and one where something may begin."""


class Pages:
    """The templates, over one service."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._templates = Jinja2Templates(directory=FOLDER / "templates")
        environment = self._templates.env
        environment.trim_blocks = environment.lstrip_blocks = True
        environment.filters |= {
            "moment": views.moment, "day": views.day, "words": views.words, "short": views.short, "size": views.size,
            "span": views.span, "distance": views.distance, "reason": views.reason_words,
        }  # fmt: skip

    def page(
        self,
        request: Request,
        visitor: Visitor | None,
        name: str,
        *,
        status: int = 200,
        poll_ms: int = 0,
        **values: Any,
    ) -> Response:
        """A page; 304 without a body if the asker has this very page already.

        Args:
            visitor: none on the page to sign in.
            poll_ms: how soon the page's script asks again; 0: never.
        """
        shown = {"visitor": visitor, "now": self._context.now(), "here": here_of(request), "poll_ms": poll_ms, **values}
        shown["root"] = root_of(request)
        response: Response = self._templates.TemplateResponse(request, name, shown, status_code=status)
        tag = f'"{sha256(bytes(response.body)).hexdigest()[:32]}"'
        if status == 200 and request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        response.headers["ETag"] = tag
        return response


def here_of(request: Request) -> str:
    """Path of the page within the console."""
    return without(root_of(request), request.scope["path"])


def going_to(request: Request, path: str) -> RedirectResponse:
    """Answer that leads to another page of the console."""
    return RedirectResponse(root_of(request) + path, 303)


def wants_html(request: Request) -> bool:
    """Whether a browser asks: it says so, scripts do not."""
    return "text/html" in request.headers.get("accept", "")


def add_error_pages(app: FastAPI, pages: Pages) -> None:
    """Errors as pages for browsers and as a line of text for scripts; who is not signed in is asked to sign in."""

    def answer(request: Request, status: int, title: str, detail: str) -> Response:
        headers = {"WWW-Authenticate": 'Basic realm="Expunge console"'} if status == 401 else {}
        if not wants_html(request):
            return PlainTextResponse(f"{title}: {detail}\n", status, headers)
        page: Response = pages.page(request, None, "error.html", status=status, title=title, detail=detail)
        return page

    @app.exception_handler(ExpungeError)
    async def expected(request: Request, error: ExpungeError) -> Response:
        if isinstance(error, NotAuthenticatedError) and wants_html(request):
            place = here_of(request) + (f"?{request.url.query}" if request.url.query else "")
            target = f"/sign-in?next={quote(place)}" if request.method == "GET" else "/sign-in"
            response = going_to(request, target + ("&over=1" if COOKIE in request.cookies else ""))
            response.delete_cookie(COOKIE, path=root_of(request) or "/")
            return response
        if error.status >= 500 and not isinstance(error, TryLaterError):
            log.warning("console.failed", error=describe(error))
            return answer(
                request, 500, "Internal error", "The console failed on this page; the worker's log says where."
            )
        return answer(request, error.status, error.title, error.detail)

    @app.exception_handler(HTTPException)
    async def plain(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return await expected(
                request, NotFoundError("There is no such page; the links above lead to those there are.")
            )
        return answer(request, error.status_code, "Not possible", str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        places = ", ".join(sorted({str(each["loc"][-1]) for each in error.errors()}))
        return answer(request, 422, "Invalid input", f"Expected other values of: {places}. Go back and change them.")

    @app.exception_handler(OperationalError)
    async def busy(request: Request, error: OperationalError) -> Response:
        log.error("database.unavailable", error=describe(error))
        return answer(request, 503, "Try later", "The database does not answer at the moment; nothing was changed.")
