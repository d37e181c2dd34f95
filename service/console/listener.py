"""The operators' listener: a small server in a thread of the worker, on loopback by default.

Pages need an API key with the scope `audit:read`, given as the password of HTTP Basic authentication (any user name),
so a browser asks for it by itself and no session exists that could be forged. Everything here only reads; `/metrics`
and `/health` carry nothing about people and need no key.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates
from sqlmodel import col, select

from service import auth
from service.console.metrics import DatabaseCollector, exposition
from service.context import LINE, Context
from service.db import reading
from service.errors import ExpungeError, NotFoundError
from service.tables import (
    Attempt,
    CertificateRecord,
    Deployment,
    ErasureRequest,
    ModelVersion,
    OpenLine,
    RequestEvent,
    Run,
    ServingWorker,
)  # fmt: skip

FOLDER = Path(__file__).parent
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
basic = HTTPBasic(auto_error=False)  # here, not in the function: the annotations below are looked up by name
CLOSED = ("completed", "cancelled", "rejected")
SHOWN = 500


def create_console(context: Context) -> FastAPI:
    """The pages over one database."""
    app = FastAPI(title="Expunge console", openapi_url=None, docs_url=None, redoc_url=None)
    app.mount("/static", StaticFiles(directory=FOLDER / "static"), name="static")
    templates = Jinja2Templates(directory=FOLDER / "templates")
    templates.env.filters["moment"] = moment
    collector = DatabaseCollector(context)

    def reader(credentials: Annotated[HTTPBasicCredentials | None, Depends(basic)]) -> None:
        presented = credentials.password if credentials else ""
        auth.authenticate(context.engine, presented, now=context.now()).demand(auth.AUDIT, auth.ADMIN)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Any]) -> Response:
        response: Response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    @app.exception_handler(ExpungeError)
    async def explain(request: Request, error: ExpungeError) -> Response:
        headers = {"WWW-Authenticate": 'Basic realm="Expunge console"'} if error.status == 401 else {}
        return Response(f"{error.title}: {error.detail}\n", error.status, headers, media_type="text/plain")

    guarded = APIRouter(dependencies=[Depends(reader)])

    def page(asked: Request, name: str, **values: Any) -> HTMLResponse:
        return templates.TemplateResponse(asked, name, {"now": context.now(), "here": asked.url.path, **values})

    @guarded.get("/")
    def requests(request: Request) -> HTMLResponse:
        with reading(context.engine) as s:
            rows = list(s.exec(select(ErasureRequest).order_by(col(ErasureRequest.due_at)).limit(SHOWN)))
            deployment, open_line = s.get(Deployment, LINE), s.get(OpenLine, LINE)
            run = s.get(Run, open_line.run_id) if open_line else None
        rows.sort(key=lambda row: row.state in CLOSED)
        now = context.now()
        return page(
            request, "requests.html", live=True, requests=rows, run=run,
            generation=deployment.committed_generation if deployment else None,
            n_open=sum(row.state not in CLOSED for row in rows),
            n_late=sum(row.state not in CLOSED and row.due_at < now for row in rows),
            n_attention=sum(row.state == "needs_attention" for row in rows),
            n_completed=sum(row.state == "completed" for row in rows),
        )  # fmt: skip

    @guarded.get("/requests/{request_id}")
    def one_request(request: Request, request_id: str) -> HTMLResponse:
        with reading(context.engine) as s:
            row = s.get(ErasureRequest, request_id)
            if row is None:
                raise NotFoundError("There is no request with this number.")
            moves = select(RequestEvent).where(RequestEvent.request_id == row.id).order_by(col(RequestEvent.id))
            events = list(s.exec(moves))
            run = s.get(Run, row.run_id) if row.run_id else None
            attempts = list(s.exec(select(Attempt).where(Attempt.run_id == row.run_id).order_by(col(Attempt.step))))
        shown = {"erasure": row, "events": events, "run": run, "attempts": attempts}
        return page(request, "request.html", live=row.state not in CLOSED, **shown)

    @guarded.get("/models")
    def models(request: Request) -> HTMLResponse:
        with reading(context.engine) as s:
            versions = list(s.exec(select(ModelVersion).order_by(col(ModelVersion.created_at).desc())))
            workers = list(s.exec(select(ServingWorker).order_by(col(ServingWorker.started_at))))
        return page(request, "models.html", live=True, versions=versions, workers=workers)

    _add_files(guarded, context)
    app.include_router(guarded)

    @app.get("/metrics")
    def metrics() -> Response:
        content, kind = exposition(collector)
        return Response(content, headers={"Content-Type": kind})

    @app.get("/health")
    def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    return app


def _add_files(router: APIRouter, context: Context) -> None:
    """Audit reports and certificates."""

    @router.get("/runs/{run_id}/reports/{step}")
    def report(run_id: str, step: int) -> FileResponse:
        with reading(context.engine) as s:
            if s.get(Run, run_id) is None:  # also keeps anything but a known run's number out of the path
                raise NotFoundError("There is no such run.")
        path = context.settings.reports_folder / run_id / f"step-{step}.html"
        if not path.exists():
            raise NotFoundError("There is no report of this attempt.")
        return FileResponse(path, media_type="text/html")

    @router.get("/certificates/{certificate_id}")
    def certificate(certificate_id: str) -> Response:
        with reading(context.engine) as s:
            row = s.get(CertificateRecord, certificate_id)
        if row is None:
            raise NotFoundError("There is no such certificate.")
        name = f"certificate-{row.id[:8]}.json"
        headers = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(json.dumps(row.envelope, indent=2), media_type="application/json", headers=headers)


def moment(value: datetime) -> str:
    """A time as people read it."""
    return f"{value:%d %b %Y %H:%M:%S} UTC"


class Listener:
    """The console's server in a thread; leaving the block stops it."""

    def __init__(self, context: Context) -> None:
        settings = context.settings
        config = uvicorn.Config(
            create_console(context), host=settings.console_host, port=settings.console_port, access_log=False,
            lifespan="off", log_config=None,  # handlers of its own would print errors past our redaction
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="console", daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=5)
