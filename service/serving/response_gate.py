"""Responses that may not be sent any more are stopped, and the slot is told when a request is over.

Tested in `tests/service/http/test_body_limit.py`.
"""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import TryLaterError
from service.http.problems import problem_of
from service.serving.slot import InFlight, ModelSlot

_IN_FLIGHT = "expunge.in_flight"


class ResponseGate:
    """ASGI middleware: stops responses that the slot does not let be sent, and tells it when a request is over."""

    def __init__(self, app: ASGIApp, *, slot: ModelSlot) -> None:
        self.app = app
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = scope[_IN_FLIGHT] = InFlight()
        is_stopped = False

        async def send_if_allowed(message: Message) -> None:
            nonlocal is_stopped
            if is_stopped:
                return
            if message["type"] == "http.response.start" and not self._slot.may_send(request):
                is_stopped = True
                later = TryLaterError("This process was suspended while it answered; send the image again.")
                await problem_of(later, scope.get("expunge.request_id", ""))(scope, receive, send)
                return
            await send(message)

        try:
            await self.app(scope, receive, send_if_allowed)
        finally:
            self._slot.finish(request)  # every byte was handed to the network, or none will be


def in_flight_of(scope: Any) -> InFlight:
    """What the slot knows of a request; made by `ResponseGate`."""
    request: InFlight = scope[_IN_FLIGHT]
    return request
