"""One log line a request, and the id that ties a caller's request to everything logged about it.

Tested in `tests/service/telemetry/test_logs.py`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

import structlog
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.problems import internal_problem
from service.telemetry.calls import erasures_of, route_template
from service.telemetry.logs import call

HEADER = "X-Request-ID"


_HEADER = HEADER.lower().encode()


_FIT_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


OnAnswer = Callable[[str, str, int, float], object]


class RequestLog:
    """ASGI middleware: gives each request an id, logs one line when it is answered, and answers what nobody caught.

    The id comes from `X-Request-ID` if that is up to 64 letters, digits, dots, hyphens or underscores, else it is made;
    the answer carries it. Callers must not put a person's id there. The package asgi-correlation-id would do as much as
    the first six lines of `__call__`, in a middleware more around every prediction.

    Args:
        on_answer: told method, route's template, status and seconds of each request.
        share: of the requests that succeed, which get a line; the others always do.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        new_id: Callable[[], str],
        clock: Callable[[], float] = time.perf_counter,
        on_answer: OnAnswer = lambda *_: None,
        share: float = 1.0,
    ) -> None:
        self.app = app
        self._share, self._due = share, 0.0
        self._new_id = new_id
        self._clock = clock
        self._on_answer = on_answer

    @cached_property
    def _log(self) -> Any:
        """Made with the first line; the modules' way makes one a line."""
        return structlog.get_logger().bind()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _HEADER), b"")
        request_id = given.decode() if _FIT_ID.fullmatch(given) else self._new_id()
        scope["expunge.request_id"] = request_id
        started, status = self._clock(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        token = call.set(request_id)
        try:
            await self.app(scope, receive, send_with_id)
        except Exception as error:
            self._log.exception("request.crashed", exc_info=error)
            if status:
                raise ConnectionAbortedError("The answer broke off.") from None  # too late for another status
            await internal_problem(request_id)(scope, receive, send_with_id)
        finally:
            seconds, route = self._clock() - started, route_template(scope)
            self._on_answer(scope["method"], route, status or 500, seconds)
            if self._is_to_be_logged(status):
                self._line(scope, route, status, seconds)
            call.reset(token)

    def _is_to_be_logged(self, status: int) -> bool:
        if not 200 <= status < 400:
            return True
        self._due += self._share
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True

    def _line(self, scope: Scope, route: str, status: int, seconds: float) -> None:
        method, client = scope["method"], scope.get("expunge.client")
        self._log.info(
            "request.answered",
            method=method if method.isalpha() and method.isascii() else "?",
            route=route,
            status=status,
            duration_seconds=round(seconds, 6),
            client_id=client.id if client else None,
            **erasures_of(scope, status),
        )
