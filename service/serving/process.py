"""One serving process, put together: database, slot, batcher, follower, and the API around them.

Tested in `tests/service/serving/test_predict.py`.
"""

from __future__ import annotations

import gc
import os
import time
from dataclasses import dataclass
from importlib.util import find_spec

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp

from service.api.routes import create_api, problems
from service.context import Context
from service.errors import StartupError, TryLaterError
from service.http.body_limit import FORM_OVERHEAD_BYTES, BodyLimit
from service.http.content_policy import ContentPolicy
from service.http.guard import MAX_BODY_BYTES
from service.http.prefix import Prefixed
from service.http.problems import problem_of, request_id_of
from service.http.request_log import RequestLog
from service.models.commit_word import CommitWord
from service.requests.head_count import people_held
from service.serving.batching import MicroBatcher
from service.serving.connections import PatientProtocol
from service.serving.fast_path import FastPath, respond
from service.serving.follower import Follower
from service.serving.in_flight import InFlightGenerations
from service.serving.port import Port, create_beside
from service.serving.predict import Predictor
from service.serving.response_gate import ResponseGate
from service.serving.routes import prediction_routes
from service.serving.slot import Lease, ModelSlot
from service.serving.speedups import EARLY_REFUSAL, is_on
from service.serving.speedups.early_refusal import Shedding, protocol_with
from service.store.felt import Board
from service.store.serving_mark import ServingMark, is_served
from service.telemetry import serving_metrics
from service.telemetry.tracing import TraceCalls, Traces

# Objects more before a collection. Python's 700 are there every few requests, and next to nothing of them is in cycles.
_COLLECT = (20_000, 10, 10)


@dataclass(frozen=True)
class ServingProcess:
    """Everything a serving process holds; `app` answers from `start` to `stop`."""

    context: Context
    app: FastAPI
    predictions: APIRouter
    predictor: Predictor
    slot: ModelSlot
    batcher: MicroBatcher
    follower: Follower
    watch: serving_metrics.Watch
    traces: Traces
    mark: ServingMark
    accepting: ServingMark
    board: Board

    @classmethod
    def of(cls, context: Context, place: int = 0) -> ServingProcess:
        """The process's parts, connected; nothing runs yet.

        Args:
            place: a number that no other serving process of this machine has while this one lives.

        Raises:
            StartupError: a package that the settings ask for is missing.
        """
        settings = context.settings
        if settings.backend == "openvino" and find_spec("openvino") is None:
            raise StartupError(
                "Expected the package openvino, since EXPUNGE_BACKEND is openvino; "
                "run pip install 'expunge[openvino]', or unset it."
            )
        word, lease = CommitWord(settings.commit_word_path), Lease(settings.lease_seconds)
        slot = ModelSlot(word, lease, InFlightGenerations(settings.in_flight_path, place, os.getpid()))
        watch = serving_metrics.Watch() if settings.metrics else serving_metrics.Unwatched()
        batcher = MicroBatcher(slot, max_queue=settings.max_queue, on_batch=watch.batch)
        follower = Follower(context, slot, lease, word, batcher, on_swap=watch.swap)
        traces = Traces.open(settings, "serving")
        app = create_api(context, n_subjects=lambda: people_held(context), on_answer=watch.answer)
        predictor = Predictor(slot, batcher, app.state.keys, settings, watch)
        marks = ServingMark(settings.serving_mark_path), ServingMark(settings.accepting_mark_path)
        process = cls(
            context,
            app,
            prediction_routes(predictor),
            predictor,
            slot,
            batcher,
            follower,
            watch,
            traces,
            *marks,
            Board(settings.training_board_path, place),
        )
        process._complete_app()
        return process

    @property
    def routes(self) -> list[APIRoute]:
        """Every route of the API."""
        return [route for route in (*self.predictions.routes, *self.app.routes) if isinstance(route, APIRoute)]

    def fast_path(self, app: ASGIApp, prefix: str) -> ASGIApp:
        """The app with predictions answered before it; see `service.serving.fast_path`.

        Args:
            app: answers everything else.
            prefix: under which the API lies there, such as `/v1`.
        """
        fast_routes = {
            prefix + route.path: (self._surrounded(respond(route.get_route_handler())), route)
            for route in self.predictions.routes
            if isinstance(route, APIRoute)
        }
        return FastPath(app, fast_routes)

    def port(self, app: ASGIApp, prefix: str) -> ASGIApp:
        """Everything that the serving port answers; see `service.serving.port`.

        Args:
            app: answers calls of the API that are no predictions.
            prefix: as of `fast_path`.
        """
        settings, new_id = self.context.settings, self.context.new_id
        beside = create_beside(
            prefix, has_metrics=settings.metrics, metrics_token=settings.metrics_token, new_id=new_id
        )
        proxied = settings.path_prefix
        api = self.fast_path(Prefixed(app, proxied), prefix)
        return ContentPolicy(Port(api, prefix, Prefixed(beside, proxied), proxied))

    def protocol(self, prefix: str) -> type[PatientProtocol]:
        """Class of this process's connections.

        Args:
            prefix: as of `fast_path`.
        """
        if not is_on(EARLY_REFUSAL, self.context.settings):
            return PatientProtocol
        route, error = "/predictions", self.predictor.queue_full
        shedding = Shedding(
            prefix + route,
            lambda: self.predictor.n_free,
            error,
            most_bytes=self.context.settings.max_image_bytes,
            new_id=self.context.new_id,
            on_refusals=lambda n: self.watch.refusals(route, error.title, n),
        )
        return protocol_with(shedding)

    def _complete_app(self) -> None:
        self.app.include_router(self.predictions)
        self.app.router.routes.insert(0, self.app.router.routes.pop())  # first also in the documents
        _add_health(self.app, self.follower)
        self.app.user_middleware.extend(self._inner_layers())  # within the API's own, which gives each request its id
        if self.traces.on:
            self.app.add_middleware(TraceCalls, traces=self.traces)

    def _surrounded(self, app: ASGIApp) -> ASGIApp:
        """The app with the layers around it that the API has."""
        for layer in reversed(self._inner_layers()):
            app = layer.cls(app, *layer.args, **layer.kwargs)
        share = self.context.settings.log_predictions_share
        app = RequestLog(app, new_id=self.context.new_id, on_answer=self._answered, share=share)
        return TraceCalls(app, traces=self.traces) if self.traces.on else app

    def _answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self.watch.answer(method, route, status, seconds)
        if status == 200:
            now = time.monotonic()
            self.board.note(now - seconds, now)

    def _inner_layers(self) -> list[Middleware]:
        most_bytes = max(self.context.settings.max_image_bytes + FORM_OVERHEAD_BYTES, MAX_BODY_BYTES)
        return [Middleware(ResponseGate, slot=self.slot), Middleware(BodyLimit, most_bytes=most_bytes)]

    def start(self) -> None:
        """Start the threads, load and warm up what is active; afterwards the process may still not be ready."""
        self.mark.hold()
        self.accepting.hold()
        self.watch.start(
            (method, route.path, route.status_code or 200)
            for route in self.routes
            for method in sorted(route.methods or ())
        )
        self.batcher.start()
        self.follower.start()
        gc.collect()
        gc.freeze()  # full collections over torch's modules stop the process for hundreds of milliseconds
        gc.set_threshold(*_COLLECT)

    def accepts_last(self) -> bool:
        """From now on the process takes no connections; whether no other one of this machine does."""
        PatientProtocol.is_ending = True
        self.accepting.release()
        return not is_served(self.context.settings.accepting_mark_path)

    def stop(self) -> None:
        """Take the process's row away and end its threads; to be called after the last response."""
        self.follower.stop()
        self.batcher.stop()
        self.watch.stop()
        self.traces.close()
        self.mark.release()
        self.accepting.release()


def _add_health(app: FastAPI, follower: Follower) -> None:
    @app.get("/health/live", tags=["health"])
    async def read_liveness() -> dict[str, str]:
        """The process runs its event loop. Needs no key."""
        return {"status": "alive"}

    @app.get("/health/ready", tags=["health"], responses=problems(503), response_model=dict[str, str])
    async def read_readiness(request: Request) -> Response:
        """The process answers predictions with the active model version. Needs no key."""
        reason = follower.why_not_ready()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return problem_of(TryLaterError(reason), request_id_of(request))
