from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from service import __version__
from service.errors import StartupError
from service.settings import Settings
from service.telemetry.tracing import TraceCalls, Traces

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

CANARY = "canary-88c1"
RUN = "0b0e7a62-3c43-4e46-b7f8-3f1d5d8f7b11"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def traces(exporter: InMemorySpanExporter, tmp_path: Path) -> Iterator[Traces]:
    settings = Settings(home=tmp_path, otlp_endpoint="http://127.0.0.1:9")
    traces = Traces.open(settings, "worker", exporter=exporter)
    yield traces
    traces.close()


def sent(traces: Traces, exporter: InMemorySpanExporter) -> tuple[ReadableSpan, ...]:
    provider = traces._provider
    assert provider is not None
    provider.force_flush()
    return exporter.get_finished_spans()


def app(traces: Traces) -> FastAPI:
    app = FastAPI()
    app.add_middleware(TraceCalls, traces=traces)

    @app.post("/predictions")
    def predict() -> dict[str, str]:
        return {}

    @app.get("/things/{thing_id}")
    def thing(thing_id: str) -> dict[str, str]:
        if thing_id == "broken":
            raise ValueError(CANARY)
        return {}

    return app


def test_stages_of_a_run_are_one_trace_whoever_carries_them_out(traces: Traces, exporter: InMemorySpanExporter) -> None:
    with traces.stage(RUN, "plan", erasure_ids=["e-0001"]):
        pass
    with traces.stage(RUN, "audit", erasure_ids=["e-0001"]):
        pass
    plan, audit = sent(traces, exporter)
    assert f"{plan.context.trace_id:032x}" == f"{audit.context.trace_id:032x}" == RUN.replace("-", "")
    assert (plan.parent, audit.parent) == (None, None)
    assert plan.attributes == {"expunge.run_id": RUN, "expunge.erasure_ids": ("e-0001",)}


def test_an_error_is_told_by_its_place(traces: Traces, exporter: InMemorySpanExporter) -> None:
    with pytest.raises(ValueError, match=CANARY), traces.stage(RUN, "plan", erasure_ids=[]):
        raise ValueError(CANARY)
    (span,) = sent(traces, exporter)
    assert not span.status.is_ok
    assert span.status.description is not None
    assert span.status.description.startswith("ValueError at test_tracing.py")
    assert CANARY not in span.to_json()


def test_a_call_is_named_by_its_template(traces: Traces, exporter: InMemorySpanExporter) -> None:
    with TestClient(app(traces), raise_server_exceptions=False) as client:
        client.get(f"/things/{CANARY}?q={CANARY}", headers={"baggage": f"who={CANARY}"})
        client.get("/things/broken")
        client.get(f"/{CANARY}")
    good, broken, unmatched = sent(traces, exporter)
    assert [span.name for span in (good, broken, unmatched)] == ["GET /things/{thing_id}"] * 2 + ["GET unmatched"]
    assert [span.attributes["http.response.status_code"] for span in (good, broken, unmatched)] == [200, 500, 404]
    assert [span.status.is_ok for span in (good, broken, unmatched)] == [True, False, True]
    assert all(CANARY not in span.to_json() for span in (good, broken, unmatched))


def test_predictions_are_traced_only_for_who_asks(traces: Traces, exporter: InMemorySpanExporter) -> None:
    with TestClient(app(traces)) as client:
        client.post("/predictions")
        client.post("/predictions", headers={"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"})
    (span,) = sent(traces, exporter)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == "00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, {"service.name": "expunge-worker", "service.version": __version__}),
        ({"OTEL_SERVICE_NAME": "faces"}, {"service.name": "faces", "service.version": __version__}),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=faces,service.version=9,deployment.environment.name=eu%20west"},
            {"service.name": "faces", "service.version": "9", "deployment.environment.name": "eu west"},
        ),
        (
            {"OTEL_RESOURCE_ATTRIBUTES": "service.name=other,k8s.pod.name=w-0", "OTEL_SERVICE_NAME": "faces"},
            {"service.name": "faces", "k8s.pod.name": "w-0"},
        ),
    ],
)
def test_the_operators_own_name_and_attributes_go_before_ours(
    environment: dict[str, str], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    exporter = InMemorySpanExporter()
    traces = Traces.open(Settings(home=tmp_path, otlp_endpoint="http://127.0.0.1:9"), "worker", exporter=exporter)
    with traces.stage(RUN, "plan", erasure_ids=[]):
        pass
    (span,) = sent(traces, exporter)
    traces.close()
    assert expected.items() <= span.resource.attributes.items()
    assert span.resource.attributes["telemetry.sdk.name"] == "opentelemetry"


def test_off_costs_and_sends_nothing() -> None:
    traces = Traces.open(Settings(), "serving")
    assert not traces.on
    with traces.stage(RUN, "plan", erasure_ids=[]):
        pass
    traces.close()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(StartupError, match=r"pip install 'expunge\[otel\]'"):
        Traces.open(Settings(otlp_endpoint="http://127.0.0.1:9"), "worker")
