"""OpenTelemetry traces, sent to the collector of `EXPUNGE_OTLP_ENDPOINT`; without one nothing here runs.

A call of the API is one span, in the caller's trace if it sent a `traceparent`. Predictions are traced only then: they
are many. The stages of a run are spans of one trace whose id is the run's, so a run that a killed worker left half way
stays one trace. Spans name calls, erasure requests and runs by number, and errors by place; never a person.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import __version__
from service.errors import StartupError
from service.settings import Settings
from service.telemetry.calls import erasures_of, route_template
from service.telemetry.redact import describe

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SpanExporter

_MANY = "/predictions"

_run_of_span: ContextVar[str | None] = ContextVar("run_of_span", default=None)


class Traces:
    """Where the spans of one process go.

    Args:
        provider: of OpenTelemetry; none: spans cost nothing and go nowhere.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("expunge", __version__) if provider else None

    @classmethod
    def open(
        cls, settings: Settings, process: Literal["serving", "worker"], *, exporter: SpanExporter | None = None
    ) -> Traces:
        """Traces as the settings want them.

        Args:
            exporter: instead of the one that sends to the settings' collector.

        Raises:
            StartupError: the packages of the extra `otel` are missing.
        """
        if not settings.otlp_endpoint:
            return cls()
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import OTELResourceDetector, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError:
            raise StartupError(
                "Expected the packages that send traces, since EXPUNGE_OTLP_ENDPOINT is set; "
                "run pip install 'expunge[otel]', or unset it."
            ) from None
        ours = Resource.create({"service.name": f"expunge-{process}", "service.version": __version__})
        resource = ours.merge(OTELResourceDetector().detect())  # once more: what the operator says goes before ours
        provider = TracerProvider(resource=resource, id_generator=_run_ids(), shutdown_on_exit=False)
        address = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
        provider.add_span_processor(BatchSpanProcessor(exporter or OTLPSpanExporter(address, timeout=5)))
        return cls(provider)

    @property
    def on(self) -> bool:
        """Whether spans go anywhere."""
        return self._tracer is not None

    def close(self) -> None:
        """Send what is left."""
        if self._provider is not None:
            self._provider.shutdown()

    @contextmanager
    def stage(self, run_id: str, name: str, *, erasure_ids: Sequence[str]) -> Iterator[None]:
        """A span of a run's stage."""
        if self._tracer is None:
            yield
            return
        from opentelemetry.context import Context

        attributes = {"expunge.run_id": run_id, "expunge.erasure_ids": list(erasure_ids)}
        token = _run_of_span.set(run_id)
        try:
            # a root of its own: the stage before it may have run in a process that was killed
            span = self._tracer.start_span(name, context=Context(), attributes=attributes)
        finally:
            _run_of_span.reset(token)
        with _ending(span):
            yield

    @contextmanager
    def call(self, scope: Scope) -> Iterator[Callable[[int], None]]:
        """A span of an HTTP call; what it gives is to be told the status of the answer."""
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if self._tracer is None:
            raise RuntimeError("Expected traces that are on; look at `on` first.")
        caller = TraceContextTextMapPropagator().extract(dict(Headers(scope=scope)))
        method = scope["method"] if scope["method"].isalpha() else "?"
        span = self._tracer.start_span(method, context=caller, kind=SpanKind.SERVER)

        def answered(status: int) -> None:
            route = route_template(scope)
            span.update_name(f"{method} {route}")
            span.set_attributes(
                {
                    "http.request.method": method,
                    "http.route": route,
                    "http.response.status_code": status,
                    "expunge.request_id": scope.get("expunge.request_id", ""),
                    **{f"expunge.{name}": value for name, value in erasures_of(scope, status).items()},
                }
            )
            if status >= 500:
                span.set_status(Status(StatusCode.ERROR))

        with _ending(span):
            yield answered


class TraceCalls:
    """ASGI middleware: a span for each call, for predictions only if the caller traces them."""

    def __init__(self, app: ASGIApp, *, traces: Traces) -> None:
        self.app = app
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["path"].endswith(_MANY) and "traceparent" not in Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        status = 500

        async def send_and_look(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        with self._traces.call(scope) as answered:
            try:
                await self.app(scope, receive, send_and_look)
            finally:
                answered(status)


@contextmanager
def _ending(span: Any) -> Iterator[None]:
    """End the span with the block. An error is told by its place: its message may name a person."""
    from opentelemetry.trace import Status, StatusCode, use_span

    try:
        with use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except BaseException as error:
        span.set_status(Status(StatusCode.ERROR, describe(error)))
        raise
    finally:
        span.end()


def _run_ids() -> Any:
    """Ids of spans and traces at random, but a run's own number for the trace of its stages."""
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

    class RunIds(RandomIdGenerator):
        def generate_trace_id(self) -> int:
            run_id = _run_of_span.get()
            return UUID(run_id).int if run_id else super().generate_trace_id()

    return RunIds()
