"""Limits on what a call may send, before anything parses it."""

from __future__ import annotations

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import TooLargeError
from service.http.problems import problem_of

BODY_SECONDS = 10.0  # a face of 10 MB at 8 Mbit/s
FORM_OVERHEAD_BYTES = 64_000  # boundaries and headers around the image of a multipart body


class BodyLimit:
    """ASGI middleware: refuses a body above `most_bytes` before anything parses it, declared or sent in chunks.

    A body that is not there after `most_seconds` is not waited for: while it trickles it holds one of the places that
    the process has for images.
    """

    def __init__(self, app: ASGIApp, *, most_bytes: int, most_seconds: float = BODY_SECONDS) -> None:
        self.app = app
        self._most_bytes = most_bytes
        self._most_seconds = most_seconds
        self._sentence = f"Expected a body of at most {most_bytes:,} bytes; send a smaller one."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if declared.isdigit() and int(declared) > self._most_bytes:
            refusal = problem_of(TooLargeError(self._sentence), scope.get("expunge.request_id", ""))
            await refusal(scope, receive, send)
            return
        n_received, deadline = 0, asyncio.get_running_loop().time() + self._most_seconds
        is_whole = False

        async def receive_and_count() -> Message:
            nonlocal n_received, is_whole
            if is_whole:  # what comes now is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                sentence = f"Expected the whole body within {self._most_seconds:.0f} seconds; send it faster."
                raise HTTPException(408, sentence, headers={"Connection": "close"}) from None
            is_whole = not message.get("more_body", False)
            n_received += len(message.get("body", b""))
            if n_received > self._most_bytes:
                raise HTTPException(413, self._sentence)
            return message

        await self.app(scope, receive_and_count, send)


class OneLinePaths:
    """ASGI middleware: line breaks of a path become spaces, so that it reaches the routes and gets their answer.

    Routers' patterns for "anything" stop at a line break, and the framework would answer in a shape of its own. No
    resource has a name with either.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "\n" in scope.get("path", ""):
            scope = {**scope, "path": scope["path"].replace("\n", " ")}
        await self.app(scope, receive, send)
