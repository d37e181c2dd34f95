"""The path under which a proxy offers a listener: `/faces` of `https://example.org/faces/v1/predictions`.

The proxy may take the prefix off or leave it: calls with and without it are answered alike, so that probes and scrapes
go to the port itself. The app gets both in the way of ASGI, `root_path` and a path that begins with it.

Tested in `tests/journey/test_proxy.py`.
"""

from __future__ import annotations

from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send


def without(prefix: str, path: str) -> str:
    """The path without the prefix, if it has it."""
    if prefix and (path == prefix or path.startswith(f"{prefix}/")):
        return path[len(prefix) :] or "/"
    return path


def bare(scope: Scope, prefix: str) -> Scope:
    """The scope of a call as if there were no proxy."""
    path = without(prefix, scope["path"])
    return scope if path == scope["path"] else {**scope, "path": path, "raw_path": path.encode()}


class Prefixed:
    """ASGI app: tells an app behind a proxy where it lies."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._prefix and scope["type"] == "http":
            path = self._prefix + without(self._prefix, scope["path"])
            scope = {**scope, "root_path": self._prefix, "path": path, "raw_path": path.encode()}
        await self._app(scope, receive, send)


def root_of(request: HTTPConnection) -> str:
    """The prefix of the call's app; empty: none."""
    return str(request.scope.get("root_path", "")).rstrip("/")
