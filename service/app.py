"""The BentoML service: `python -m bentoml serve service.app:Expunge`. The only module that knows BentoML.

BentoML starts the processes, shares the socket among them, starts ended ones anew and stops them gently. What it would
do itself per request is turned off or not used: its metrics label by raw path, its tracing and access log cost as much
as a small model, its parameter types fetch URLs. The API is a FastAPI app mounted at `/v1`.

The parent process and `bentoml build` import this module as well; only a serving process opens database and keys.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: each process has a core, and a second thread would spin

import bentoml
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from service.settings import Settings

_SWITCH_SECONDS = 0.0005  # Python's 5 ms would hold up the inference thread at each of a model's sixty operations
_TIMEOUT_SECONDS = 15  # each request leaves a timer behind for this long

_settings = Settings()


def _is_serving_process() -> bool:
    return bentoml.server_context.worker_index is not None


if _is_serving_process():
    from service.context import Context
    from service.http.body_limit import OneLinePaths
    from service.serving import connections
    from service.serving.process import ServingProcess
    from service.serving.speedups import FAIR_CONNECTIONS, is_on
    from service.serving.speedups.fair_connections import share_connections
    from service.telemetry.logs import set_up_logs

    if _settings.backend == "torch":
        import torch  # OpenVINO needs none, and nothing else here imports it

        torch.set_num_threads(1)
    sys.setswitchinterval(_SWITCH_SECONDS)
    set_up_logs(_settings.log_format, level=_settings.log_level)
    _process = ServingProcess.of(Context.open(_settings), place=bentoml.server_context.worker_index or 0)
    connections.use(_process.protocol("/v1"))
    _api = _process.app
else:
    _api = FastAPI(title="Expunge")


async def _unmatched(scope: Scope, receive: Receive, send: Send) -> None:
    """Paths below `/v1` that no route has: the API answers them in its own shape of errors."""
    scope.pop("route", None)
    await _api(scope, receive, send)


_rest = Starlette(routes=[Mount("/v1", app=_unmatched)])


class _OwnPort(bentoml.Service[Any]):
    """A service whose serving processes answer before everything that BentoML puts around an app; see `Port`."""

    def to_asgi(self, is_main: bool = True) -> Any:
        app = super().to_asgi(is_main)
        return _process.port(app, "/v1") if _is_serving_process() else app


@bentoml.service(
    name="expunge",
    service_class=_OwnPort,
    workers=_settings.api_workers,
    threads=1,
    traffic={"timeout": _TIMEOUT_SECONDS},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
    tracing={"excluded_urls": [".*"]},
)
@bentoml.asgi_app(_rest, path="/")
@bentoml.asgi_app(_api, path="/v1")
class Expunge:
    """Classifies faces, and takes requests to forget people."""

    @bentoml.on_startup
    async def start(self) -> None:
        """Load the active model and warm up; requests are answered afterwards."""
        if is_on(FAIR_CONNECTIONS, _settings):
            n_open = lambda: connections.PatientProtocol.n_open  # noqa: E731
            share_connections(asyncio.get_running_loop(), n_open, _process.accepts_last)
        await run_in_threadpool(_process.start)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """After the last response: finish and take the process's row away."""
        await run_in_threadpool(_process.stop)


if _is_serving_process():
    Expunge.add_asgi_middleware(OneLinePaths)  # type: ignore[attr-defined]  # a bentoml.Service by now
