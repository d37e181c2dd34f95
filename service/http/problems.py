"""The one shape of every error: `application/problem+json` (RFC 9457).

Beside the standard's `type`, `title`, `status`, `detail` there are always `request_id`, the id of the log line, and
`errors`, one entry for each place of the input that does not fit. No message repeats what was sent: it may name a
person.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import OperationalError, TimeoutError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Match

from service.errors import ExpungeError, TryLaterError
from service.telemetry.redact import describe

MEDIA_TYPE: Final = "application/problem+json"
MOST_ERRORS: Final = 20

log = structlog.get_logger(__name__)

_PLAIN: Final = {
    400: "Expected a body that can be read as JSON.",
    404: "There is no such resource; see openapi.json for what there is.",
    405: "This resource does not know that method; see the Allow header.",
}


def add_problem_handlers(app: Starlette) -> None:
    """Let the app answer every error in this shape."""
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)


async def problem_for(request: Request, error: Exception) -> JSONResponse:
    """What the app answers to an error, for routes that its own machinery does not see.

    Raises:
        Exception: the error itself, if nobody foresaw it.
    """
    for kind, handler in _HANDLERS.items():
        if isinstance(error, kind):
            return await handler(request, error)
    raise error


def problem(
    status: int,
    title: str,
    detail: str,
    *,
    request_id: str,
    errors: Sequence[Mapping[str, str]] = (),
    extra: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """An error response; `extra` adds members but never replaces the standard ones."""
    slug = title.lower().replace(" ", "-")
    body = {
        **(extra or {}),
        "type": f"urn:expunge:problem:{slug}",
        "title": title,
        "status": status,
        "detail": detail,
        "request_id": request_id,
        "errors": list(errors),
    }
    return JSONResponse(body, status, dict(headers or {}), media_type=MEDIA_TYPE)


def problem_of(error: ExpungeError, request_id: str) -> JSONResponse:
    """Response of an error of our own tree; a 5xx that was not meant for callers keeps its detail to itself."""
    if error.status >= 500 and not isinstance(error, TryLaterError):
        return internal_problem(request_id)
    headers = {}
    if error.status == 401:
        headers["WWW-Authenticate"] = 'Bearer realm="expunge"'
    if error.status == 403:
        headers["WWW-Authenticate"] = 'Bearer realm="expunge", error="insufficient_scope"'
    if isinstance(error, TryLaterError):
        headers["Retry-After"] = str(max(1, round(error.retry_after_seconds)))
    return problem(
        error.status, error.title, error.detail, request_id=request_id, extra=error.extra, headers=headers
    )  # fmt: skip


def summary_of(error: ExpungeError) -> dict[str, Any]:
    """What a problem says of one thing among several; what belongs to the whole call is left out."""
    slug = error.title.lower().replace(" ", "-")
    return {"type": f"urn:expunge:problem:{slug}", "title": error.title, "status": error.status, "detail": error.detail}


def internal_problem(request_id: str) -> JSONResponse:
    """Response of an error nobody foresaw."""
    detail = "The service failed on this request; give the request_id to its operator."
    return problem(500, "Internal error", detail, request_id=request_id)


def request_id_of(request: Request) -> str:
    """The id under which the request is logged."""
    return str(request.scope.get("expunge.request_id", ""))


def validation_errors(found: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Places and reasons of what a model refused, without any value, at most `MOST_ERRORS`."""
    return [{"pointer": _pointer(each), "detail": _reason(each)} for each in found[:MOST_ERRORS]]


async def _expected(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, ExpungeError):
        raise error
    response = problem_of(error, request_id_of(request))
    if response.status_code >= 500:
        log.warning("request.failed", error=describe(error))
    return response


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestValidationError):
        raise error
    found = error.errors()
    more = f", the first {MOST_ERRORS} are listed" if len(found) > MOST_ERRORS else ""
    detail = f"Expected input as openapi.json describes it; {len(found)} place(s) differ{more}. Nothing was stored."
    return problem(
        422, "Invalid input", detail, request_id=request_id_of(request), errors=validation_errors(found)
    )  # fmt: skip


async def _http(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, HTTPException):
        raise error
    title = "Too large" if error.status_code == 413 else HTTPStatus(error.status_code).phrase.capitalize()
    detail = _PLAIN.get(error.status_code) or str(error.detail)
    headers = dict(error.headers or {}) | ({"Allow": _allowed(request)} if error.status_code == 405 else {})
    return problem(error.status_code, title, detail, request_id=request_id_of(request), headers=headers)


def _allowed(request: Request) -> str:
    """Methods of all routes of the path; the framework names those of the first route only."""
    matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return ", ".join(sorted({method for route in matching for method in getattr(route, "methods", None) or ()}))


async def _database_busy(request: Request, error: Exception) -> JSONResponse:
    log.error("database.unavailable", error=describe(error))
    later = TryLaterError("The database does not answer at the moment; nothing was stored.", retry_after_seconds=2)
    return problem_of(later, request_id_of(request))


_HANDLERS: Final[Mapping[type[Exception], Callable[[Request, Exception], Coroutine[Any, Any, JSONResponse]]]] = {
    ExpungeError: _expected,
    RequestValidationError: _invalid,
    HTTPException: _http,
    OperationalError: _database_busy,
    TimeoutError: _database_busy,
}


def _pointer(found: Mapping[str, Any]) -> str:
    """JSON pointer into the body, or `query/limit`, `header/Idempotency-Key`; a name the caller made up is left out."""
    place, *rest = found["loc"]
    if found["type"] == "extra_forbidden":
        rest = rest[:-1]
    if found["type"] == "json_invalid":
        rest = []
    start = "" if place == "body" else str(place)
    return "/".join([start, *(str(part) for part in rest)])


def _reason(found: Mapping[str, Any]) -> str:
    kind = found["type"]
    if kind == "extra_forbidden":
        return "Expected only the fields that openapi.json names, found another one."
    if kind == "json_invalid":
        return "Expected well-formed JSON."
    if kind == "value_error":
        return str(found["ctx"]["error"]) if "ctx" in found else "Expected another value."
    return f"{found['msg']}."
