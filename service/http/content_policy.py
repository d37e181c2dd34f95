"""What a browser may do with an answer of the serving port: show it, and fetch nothing for it.

Tested in `tests/journey/test_port.py`.
"""

from __future__ import annotations

from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY: Final = "default-src 'none'; frame-ancestors 'none'"
HEADER: Final = (b"content-security-policy", POLICY.encode())


class ContentPolicy:
    """ASGI middleware: adds the policy to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], HEADER]
            await send(message)

        await self.app(scope, receive, send_with_policy)
