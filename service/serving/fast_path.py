"""The short way to predictions: past every router and every middleware that other calls go through.

BentoML, Starlette and FastAPI put their layers around each call; together they took longer than decoding the image. The
door stands before all of them, sends `POST …/predictions` to its handler and everything else to the app behind. Around
the handler stands what stands around every call of the API, and the same code: id and log line, metrics, traces, the
limit on bodies, the count of responses on their way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

Handler = Callable[[Request], Awaitable[Response]]


def respond(handler: Handler) -> ASGIApp:
    """An ASGI app of a function that gives a response to every request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        response = await handler(Request(scope, receive))
        await response(scope, receive, send)

    return app


class Door:
    """ASGI app: the short way for the paths it knows, the app behind for all else.

    Args:
        app: everything else.
        short_ways: app and described route of each path that is posted to.
    """

    def __init__(self, app: ASGIApp, short_ways: Mapping[str, tuple[ASGIApp, BaseRoute]]) -> None:
        self._app = app
        self._short_ways = short_ways

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            found = self._short_ways.get(scope["path"])
            if found is not None:
                app, scope["route"] = found
                await app(scope, receive, send)
                return
        await self._app(scope, receive, send)
