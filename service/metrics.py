"""Metrics of the serving processes, one exposition for all of them.

Labels are route templates, states and numbers of classes: no id, no path, no name, since a class may be a person. Each
process keeps its values in files of `PROMETHEUS_MULTIPROC_DIR`, which must be set before this module is imported;
without it the values are this process's alone.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.logs import route_template

_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
_LATENCIES = (0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 10.0)

REQUESTS = Counter("expunge_http_requests", "Requests answered.", ["method", "route", "status"])
LATENCY = Histogram(
    "expunge_http_request_duration_seconds",
    "From the request's head to the last byte of the answer.",
    ["method", "route"],
    buckets=_LATENCIES,
)
BATCH_SIZE = Histogram("expunge_batch_images", "Images computed together.", buckets=(1, 2, 4, 8, 16, 32, 64))
DECODE = Histogram(
    "expunge_decode_seconds",
    "Decoding of one image.",
    buckets=(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 2e-2, 0.1, 0.5, 2.0),
)
REJECTIONS = Counter("expunge_prediction_rejections", "Images not answered, by the error's title.", ["reason"])
PREDICTIONS = Counter("expunge_predictions", "Images answered, by the class's place in the manifest.", ["class_index"])
GENERATION = Gauge(
    "expunge_serving_generation",
    "Oldest generation a living serving process answers with; -1: none.",
    multiprocess_mode="livemin",
)
SWAPS = Counter("expunge_swaps", "Generations taken into service, counted in each process.")


class RequestMetrics:
    """ASGI middleware: counts and times every request under its route's template."""

    def __init__(self, app: ASGIApp, clock: Callable[[], float] = time.perf_counter) -> None:
        self.app = app
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = self._clock(), 500

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_look)
        finally:
            method = scope["method"] if scope["method"] in _METHODS else "other"
            route = route_template(scope)
            REQUESTS.labels(method, route, str(status)).inc()
            LATENCY.labels(method, route).observe(self._clock() - started)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def exposition() -> tuple[bytes, str]:
    """Metrics of all serving processes in Prometheus' text format, and its content type."""
    registry: CollectorRegistry = REGISTRY
    if _DIRECTORY in os.environ:
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4


def forget_this_process() -> None:
    """On shutdown: what only living processes have is no longer reported for this one."""
    if _DIRECTORY in os.environ:
        mark_process_dead(os.getpid())


def forget_ended_processes() -> None:
    """At start: the same for processes that had no time to do it. Counts stay: they happened."""
    directory = os.environ.get(_DIRECTORY)
    if directory is None:
        return
    found = (re.fullmatch(r"gauge_live\w*_(\d+)\.db", path.name) for path in Path(directory).glob("gauge_live*.db"))
    for pid in {int(match[1]) for match in found if match}:
        if pid != os.getpid() and not _runs(pid):
            mark_process_dead(pid)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
