"""What the serving port answers: the API, and a few places beside it.

BentoML puts pages of its own around an app: one at `/` that loads a tag manager of a third party, a description in
which the service has no version, files for both. None is reachable, because nothing but calls of the API gets to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from service import __version__
from service.http.prefix import bare, root_of
from service.http.problems import add_problem_handlers
from service.http.request_log import RequestLog
from service.http.scraper import refusal
from service.telemetry.serving_metrics import exposition

PROBES: Final[Mapping[str, str]] = {
    "/livez": "/health/live",
    "/healthz": "/health/live",
    "/readyz": "/health/ready",
}
"""Names that platforms for BentoML services ask for, and the API's own."""


class Port:
    """ASGI app: hands calls of the API on, and answers all else itself.

    Args:
        api: answers what lies under the prefix.
        prefix: such as `/v1`.
        beside: answers every other path.
        proxied: prefix of a proxy before all that, which it may leave or take off.
    """

    def __init__(self, api: ASGIApp, prefix: str, beside: ASGIApp, proxied: str = "") -> None:
        self._api = api
        self._proxied = proxied
        self._start = f"{prefix}/"
        self._beside = beside
        self._probes = {path: prefix + place for path, place in PROBES.items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = bare(scope, self._proxied)
            if scope["path"].startswith(self._start):
                await self._api(scope, receive, send)
            elif (place := self._probes.get(scope["path"])) is not None:
                await self._api({**scope, "path": place, "raw_path": place.encode()}, receive, send)
            else:
                await self._beside(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._api(scope, receive, send)
        else:
            await self._beside(scope, receive, send)


def create_beside(prefix: str, *, has_metrics: bool, metrics_token: str, new_id: Callable[[], str]) -> ASGIApp:
    """What lies beside the API: the port's own name at `/`, and the metrics.

    Args:
        prefix: of the API.
        has_metrics: whether `/metrics` is there.
        metrics_token: what a scrape must bring; empty: nothing.
        new_id: for requests that bring none.
    """
    description = f"{prefix}/openapi.json"

    def read_name(request: Request) -> Response:
        place = root_of(request) + description
        told = {"service": "Expunge", "version": __version__, "openapi": place}
        return JSONResponse(told, headers={"Link": f'<{place}>; rel="service-desc"'})

    async def read_metrics(request: Request) -> Response:
        if (refused := refusal(request, metrics_token)) is not None:
            return refused
        content, media_type = await run_in_threadpool(exposition)
        return Response(content, media_type=media_type)

    scraped = [Route("/metrics", read_metrics)] if has_metrics else []
    app = Starlette(routes=[Route("/", read_name), *scraped])
    app.router.redirect_slashes = False
    add_problem_handlers(app)
    return RequestLog(app, new_id=new_id)
