"""The slot is told when a response has left, and stops one that must not leave any more."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import TryLaterError
from service.http.problems import problem_of
from service.serving.slot import ModelSlot, Passage

_PASSAGE = "expunge.passage"


class Departures:
    """ASGI middleware: tells the slot when a response has left, and stops one that must not leave any more."""

    def __init__(self, app: ASGIApp, *, slot: ModelSlot) -> None:
        self.app = app
        self._slot = slot

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        passage = scope[_PASSAGE] = Passage()
        is_stopped = False

        async def send_if_allowed(message: Message) -> None:
            nonlocal is_stopped
            if is_stopped:
                return
            if message["type"] == "http.response.start" and not self._slot.may_send(passage):
                is_stopped = True
                later = TryLaterError("This process was suspended while it answered; send the image again.")
                await problem_of(later, scope.get("expunge.request_id", ""))(scope, receive, send)
                return
            await send(message)

        try:
            await self.app(scope, receive, send_if_allowed)
        finally:
            self._slot.leave(passage)  # every byte was handed to the network, or none will be


def passage_of(scope: Any) -> Passage:
    """The request's way through the process, begun by `Departures`."""
    passage: Passage = scope[_PASSAGE]
    return passage
