"""The operators' listener: a small server in a thread of the worker, on loopback by default.

Pages need an API key (see `sessions`); each shows what the key's scopes allow in the API, and no more. `/metrics` and
`/health` carry nothing about people and need no key; the first may ask for a token of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Annotated, Any

import structlog
import uvicorn
from fastapi import APIRouter, FastAPI, Form, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from service.console.acting_pages import add_acting_pages
from service.console.certificate_pages import add_certificate_pages
from service.console.metrics import DatabaseCollector, exposition
from service.console.proofs import add_proofs
from service.console.reading_pages import add_reading_pages
from service.console.records import add_records
from service.console.rendering import FOLDER, HEADERS, Pages, add_error_pages, going_to
from service.console.sessions import Sessions, refuse_other_origins
from service.context import Context
from service.errors import InvalidInputError, NotAllowedError, NotAuthenticatedError
from service.http.body_limit import BodyLimit
from service.http.guard import MAX_BODY_BYTES
from service.http.prefix import Prefixed
from service.http.scraper import refusal
from service.listening import PortTakenError, listen

log = structlog.get_logger()


def create_console(context: Context) -> FastAPI:
    """The pages over one database."""
    app = FastAPI(title="Expunge console", openapi_url=None, docs_url=None, redoc_url=None)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")
    app.state.sessions = Sessions(context)
    pages, router, collector = Pages(context), APIRouter(route_class=OnceRoute), DatabaseCollector(context)
    add_error_pages(app, pages)
    app.add_middleware(BodyLimit, most_bytes=MAX_BODY_BYTES)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
        response: Response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    _add_doors(router, app.state.sessions, pages)
    add_reading_pages(router, context, pages)
    add_acting_pages(router, context, pages)
    add_proofs(router, context, pages)
    add_records(router, context, pages)
    add_certificate_pages(router, context, pages)
    app.include_router(router)

    @app.get("/metrics")
    def metrics(request: Request) -> Response:
        if (refused := refusal(request, context.settings.metrics_token)) is not None:
            return refused
        content, kind = exposition(collector)
        return Response(content, headers={"Content-Type": kind})

    @app.get("/health")
    def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return app


class OnceRoute(APIRoute):
    """Route that refuses a form or a query with a field given twice: one of the two would be left out."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Handler of the route behind the check."""
        inner, has_form = super().get_route_handler(), self.body_field is not None

        async def handle(request: Request) -> Response:
            given = [request.query_params, *([await request.form()] if has_form else [])]
            if any(len(each.multi_items()) > len(each) for each in given):
                raise InvalidInputError("Expected each field once, found one twice; nothing was changed.")
            return await inner(request)

        return handle


def _add_doors(router: APIRouter, sessions: Sessions, pages: Pages) -> None:
    """Signing in and out."""

    @router.get("/sign-in")
    def sign_in_page(request: Request, next: str = "/", over: bool = False) -> Response:
        return pages.page(request, None, "sign_in.html", target=next, over=over, refused="")

    @router.post("/sign-in")
    def sign_in(
        request: Request, key: Annotated[str, Form()] = "", target: Annotated[str, Form()] = "/"
    ) -> Response:  # fmt: skip
        refuse_other_origins(request)
        response = going_to(request, _own_place(target))
        try:
            sessions.begin(key.strip(), request, response)
        except (NotAuthenticatedError, NotAllowedError) as error:
            return pages.page(
                request, None, "sign_in.html", status=error.status, target=target, over=False, refused=error.detail
            )
        return response

    @router.post("/sign-out")
    def sign_out(request: Request) -> Response:
        refuse_other_origins(request)
        response = going_to(request, "/sign-in")
        sessions.end(request, response)
        return response


def _own_place(target: str) -> str:
    """A path of this listener, whatever a link asked for."""
    fits = target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    return target if fits and "\\" not in target else "/"


class Listener:
    """The console's server in a thread; leaving the block stops it.

    Where its port is taken there is none, and the log says so: requests are carried out without it.
    """

    def __init__(self, context: Context) -> None:
        config = uvicorn.Config(
            Prefixed(create_console(context), context.settings.console_path_prefix), access_log=False, lifespan="off",
            forwarded_allow_ips=context.settings.trusted_proxies,
            log_config=None,  # handlers of its own would print errors past our redaction
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None
        self._settings = context.settings

    def __enter__(self) -> Listener:
        try:
            socket = listen(self._settings, "console_")
        except PortTakenError as error:
            log.error("console.port_taken", expected=error.detail)
            return self
        run = partial(self._server.run, sockets=[socket])
        self._thread = threading.Thread(target=run, name="console", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout=5)
