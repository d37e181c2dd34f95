"""Predictions answered before the layers that BentoML, Starlette and FastAPI put around every call.

Measured with `python benchmarks/speedups.py fast_path`: a prediction takes 0.50 ms of processor time behind them and
0.30 on this path, without its model, which takes 0.9 in batches of 32. Around the handlers stands the same code as
around every call of the API: id and log line, metrics, traces, the limit on bodies, the count of requests in flight.

Tested in `tests/service/serving/test_predict.py`.
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


class FastPath:
    """ASGI app: answers posts to some paths itself, and leaves all else to the app behind it.

    Args:
        app: everything else.
        fast_routes: app and described route of each path that it answers.
    """

    def __init__(self, app: ASGIApp, fast_routes: Mapping[str, tuple[ASGIApp, BaseRoute]]) -> None:
        self._app = app
        self._fast_routes = fast_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            found = self._fast_routes.get(scope["path"])
            if found is not None:
                app, scope["route"] = found
                await app(scope, receive, send)
                return
        await self._app(scope, receive, send)
