"""A real service under load and through an erasure, watched by a real Prometheus and a collector of traces."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from audit.policy import load_policy
from deploy.grafana import panels
from deploy.grafana.picture import Series, draw
from service.context import Context
from service.launch import Processes, free_ports
from service.settings import Settings
from service.telemetry.catalog import SERVING, WORKER
from tests.journey.conftest import ENDS, wait_serving
from tests.operators.scraping import prometheus
from tests.operators.test_prometheus import check
from tests.service.qualified import write_qualification
from tests.waiting import PATIENCE_SECONDS, join, wait_until
from unlearning.faces import read_metadata
from unlearning.recipes import load_recipe

pytestmark = [pytest.mark.prometheus, pytest.mark.journey, pytest.mark.timeout(1200)]  # more than all its patience

CANARY = "canary-5d1e9b"
CALL = "the-call-that-filed"
ROOT = Path(__file__).parents[2]


@dataclass
class Span:
    """A span as the collector got it."""

    process: str
    name: str
    trace_id: int
    attributes: dict[str, Any]


class Collector(ThreadingHTTPServer):
    """OTLP over HTTP: parses what is posted to /v1/traces."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Collect)
        self.spans: list[Span] = []
        self.raw = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Collect(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.server.raw += body
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            process = next(a.value.string_value for a in resource.resource.attributes if a.key == "service.name")
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {each.key: _plain(each.value) for each in span.attributes}
                    trace_id = int.from_bytes(span.trace_id, "big")
                    self.server.spans.append(Span(process, span.name, trace_id, attributes))
        self.send_response(200 if self.path == "/v1/traces" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    return [_plain(item) for item in value.array_value.values] if kind == "array_value" else getattr(value, kind)


@dataclass
class Watched:
    """What was seen of the service."""

    settings: Settings
    person: str
    erasure_id: str
    collector: Collector
    scrapes: dict[str, str] = field(default_factory=dict)  # by process
    series: dict[tuple[int, str], list[dict[str, Any]]] = field(default_factory=dict)  # by panel and query
    rules: list[dict[str, Any]] = field(default_factory=list)

    def log(self, process: str) -> str:
        return (self.settings.home / "logs" / f"{process}.log").read_text()

    def lines(self, process: str) -> list[dict[str, Any]]:
        lines = []
        for line in self.log(process).splitlines():
            with suppress(json.JSONDecodeError):  # the server's own, before logging is set up
                lines.append(json.loads(line))
        return lines


def scraped_by(settings: Settings) -> dict[str, object]:
    """The configuration of a Prometheus with our rules that scrapes both listeners every second."""
    return {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "deploy" / "prometheus" / "alerts.yml")],
        "scrape_configs": [
            {"job_name": f"expunge-{name}", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}
            for name, target in (("serving", settings.port), ("worker", settings.console_port))
        ],
    }


@contextmanager
def load(settings: Settings, key: str) -> Iterator[None]:
    """Predictions, bytes that are no image, and a thousand paths that nobody serves, until the block ends."""
    rows = [row for row in read_metadata(settings.data_folder) if row.split == "test"]
    images = [(settings.data_folder / row.file_name).read_bytes() for row in rows]
    stop, rng = threading.Event(), random.Random(7)
    paths = [f"/v1/{rng.getrandbits(64):x}/{rng.getrandbits(32):x}" for _ in range(1000)]

    def ask() -> None:
        address = f"http://127.0.0.1:{settings.port}"
        with httpx.Client(
            base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=PATIENCE_SECONDS
        ) as client:
            number = 0
            while not stop.is_set() or paths:
                client.post("/v1/predictions", content=images[number % len(images)])
                if number % 10 == 0:
                    client.post("/v1/predictions", content=b"not an image")
                for _ in range(20):
                    if paths:
                        assert client.get(paths.pop()).status_code == 404
                number += 1
                stop.wait(0.01)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        join(thread)


@pytest.fixture(scope="module")
def watched(
    tiny_home: Path, tmp_path_factory: pytest.TempPathFactory, program: Callable[[str, str], str]
) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    home = folder / "home"
    shutil.copytree(tiny_home, home)
    collector = Collector()
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    ports = free_ports(2)
    settings = Settings(
        home=home, recipe=str(home / "recipe.json"), policy=str(home / "policy.json"), port=ports[0],
        console_port=ports[1], log_format="json", otlp_endpoint=collector.url,
        jobs=1, shadow_seconds=30, shadow_share=1.0, shadow_images=100,
    )  # fmt: skip
    key = (home / "operator.key").read_text()
    context, method = Context.open(settings), load_policy(settings.policy).ladder[0]
    write_qualification(context, method=method, recipe=load_recipe(settings.recipe))
    context.engine.dispose()
    person = next(row.user_id for row in read_metadata(settings.data_folder) if row.split == "train")
    with prometheus(program("prometheus", "prometheus"), folder, scraped_by(settings)) as api:
        with Processes(settings) as processes:
            processes.start_serving()
            processes.start_worker()
            wait_serving(processes, settings)
            began = time.time()
            headers = {"Authorization": f"Bearer {key}"}
            address = f"http://127.0.0.1:{settings.port}"
            with (
                load(settings, key),
                httpx.Client(base_url=address, headers=headers, timeout=PATIENCE_SECONDS) as client,
            ):
                wait_for_scrapes(api, 4)
                answer = client.post(
                    "/v1/erasure-requests", json={"user_ids": [person, CANARY]}, headers={"X-Request-ID": CALL}
                )
                assert answer.status_code == 202, answer.text
                ids = [receipt["id"] for receipt in answer.json()["requests"]]

                def ended(request_id: str) -> bool:
                    return client.get(f"/v1/erasure-requests/{request_id}").raise_for_status().json()["state"] in ENDS

                processes.wait_until(lambda: all(map(ended, ids)), "both requests to end", 600)
                assert client.get(f"/v1/erasure-requests/{CANARY}").status_code == 404
                wait_for_scrapes(api, 5)
            seen = Watched(settings, person, ids[0], collector)
            for name, port in (("serving", settings.port), ("worker", settings.console_port)):
                seen.scrapes[name] = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_SECONDS).text
            _query_all(seen, api, began, time.time())
            seen.rules = httpx.get(f"{api}/rules", timeout=PATIENCE_SECONDS).raise_for_status().json()["data"]["groups"]
        # the processes have ended and sent their last spans
        yield seen
    collector.shutdown()
    collector.server_close()


def wait_for_scrapes(api: str, n: int) -> None:
    """Until Prometheus has read both processes so many times more: what happened by now is in its series then."""

    def scraped() -> dict[str, int]:
        asked = {"query": "count_over_time(up[1h]) and up == 1"}
        found = (
            httpx.get(f"{api}/query", params=asked, timeout=PATIENCE_SECONDS)
            .raise_for_status()
            .json()["data"]["result"]
        )
        return {each["metric"]["job"]: int(each["value"][1]) for each in found}

    before = wait_until(lambda: found if len(found := scraped()) == 2 else None, "Prometheus to reach both processes")
    wait_until(lambda: all(scraped().get(job, 0) >= count + n for job, count in before.items()), f"{n} scrapes of both")


def _query_all(seen: Watched, api: str, began: float, ended: float) -> None:
    for panel in panels.dashboard()["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"].replace("$job", "expunge.*").replace("$__rate_interval", "5s")
            asked = {"query": query, "start": f"{began}", "end": f"{ended}", "step": "1"}
            answer = httpx.get(f"{api}/query_range", params=asked, timeout=PATIENCE_SECONDS).raise_for_status().json()
            assert answer["status"] == "success", (panel["title"], answer)
            seen.series[panel["id"], target["legendFormat"]] = answer["data"]["result"]


def test_live_scrapes_are_clean(watched: Watched, program: Callable[[str, str], str]) -> None:
    for process, text in watched.scrapes.items():
        assert check(program("promtool", "prometheus"), text.encode()) == "", process


@pytest.mark.parametrize(("process", "table"), [("serving", SERVING), ("worker", WORKER)])
def test_what_is_exported_is_the_table(watched: Watched, process: str, table: dict[str, Any]) -> None:
    families = {family.name: family for family in text_string_to_metric_families(watched.scrapes[process])}
    assert families.keys() == {name.removesuffix("_total") for name in table}
    for name, measure in table.items():
        family = families[name.removesuffix("_total")]
        assert family.type == measure.kind, name
        assert {label for sample in family.samples for label in sample.labels} - {"le"} <= set(measure.labels), name


def test_a_thousand_paths_are_one_series(watched: Watched) -> None:
    text = watched.scrapes["serving"]
    (line,) = re.findall(r'expunge_http_requests_total\{.*route="unmatched".*', text)
    assert line.endswith(" 1000.0")


def test_every_panel_has_data(watched: Watched) -> None:
    empty = []
    for panel in panels.dashboard()["panels"]:
        for target in panel.get("targets", ()):
            result = watched.series[panel["id"], target["legendFormat"]]
            if not any(value != "NaN" for series in result for _, value in series["values"]):
                empty.append((panel["title"], target["expr"]))
    assert not empty


def test_the_dashboard_is_drawn(watched: Watched, tmp_path: Path) -> None:
    """`EXPUNGE_PICTURES=docs/images` keeps the drawing for the docs."""
    recorded: dict[int, dict[str, list[tuple[float, float]]]] = {}
    for (panel, legend), result in watched.series.items():
        for series in result:
            name = re.sub(r"\{\{(\w+)\}\}", lambda match, s=series: s["metric"].get(match[1], ""), legend)
            points = [(float(at), float(value)) for at, value in series["values"]]
            recorded.setdefault(panel, {})[re.sub(r"127\.0\.0\.1:\d+", "replica", name)] = points
    shown: dict[int, Series] = dict(recorded)
    picture = draw(panels.dashboard(), shown)
    folder = Path(os.environ.get("EXPUNGE_PICTURES") or tmp_path)
    (folder / "dashboard.svg").write_text(picture)
    assert picture.count('class="card"') == sum(map(len, panels.ROWS.values()))
    assert "NaN" not in picture
    assert "nan" not in picture
    assert watched.person not in picture


def test_the_rules_run(watched: Watched) -> None:
    rules = [rule for group in watched.rules for rule in group["rules"]]
    assert rules
    assert [rule for rule in rules if rule["health"] != "ok"] == []
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert not firing & {"DeadlineBreached", "DeadlineNear", "WorkerStalled", "GenerationsDiffer"}


def test_one_request_is_followed_through_api_worker_and_audit(watched: Watched) -> None:
    filed = [line for line in watched.lines("serving") if line.get("request_id") == CALL]
    assert [line["event"] for line in filed] == ["request.answered"]
    assert watched.erasure_id in filed[0]["erasure_ids"]
    work = [line for line in watched.lines("worker") if watched.erasure_id in line.get("erasure_ids", ())]
    events = [line["event"] for line in work]
    assert events[0] == "run.claimed"
    assert "audit.done" in events
    assert "swap.committed" in events
    assert events[-1] == "run.completed"
    (run_id,) = {line["run_id"] for line in work}
    assert {line["stage"] for line in work[1:]} >= {"plan", "unlearn", "audit", "deploy", "purge", "complete"}
    assert str(UUID(run_id)) == run_id


def test_a_run_is_one_trace_and_a_call_a_span(watched: Watched) -> None:
    wait_until(lambda: any(span.name == "complete" for span in watched.collector.spans), "the run's last span")
    stages = [span for span in watched.collector.spans if span.process == "expunge-worker"]
    names = [span.name for span in stages]
    assert names[:2] == ["plan", "gather_references"]
    assert names[-3:] == ["deploy", "purge", "complete"]
    (run_id,) = {span.attributes["expunge.run_id"] for span in stages}
    assert {span.trace_id for span in stages} == {UUID(run_id).int}
    assert all(watched.erasure_id in span.attributes["expunge.erasure_ids"] for span in stages)
    calls = [span for span in watched.collector.spans if span.process == "expunge-serving"]
    (filing,) = [span for span in calls if span.attributes["expunge.request_id"] == CALL]
    assert filing.name == "POST /erasure-requests"
    assert filing.attributes["http.response.status_code"] == 202
    assert watched.erasure_id in filing.attributes["expunge.erasure_ids"]
    assert "POST /predictions" not in {span.name for span in calls}  # nobody asked for these
    assert "GET unmatched" in {span.name for span in calls}


def test_nobody_is_named(watched: Watched) -> None:
    """Neither a known person's id nor an unknown one's is in logs, metrics, series or spans."""
    for name in (watched.person, CANARY):
        for process in ("serving", "worker"):
            assert name not in watched.log(process)
            assert name not in watched.scrapes[process]
        assert name not in json.dumps([list(series) for series in watched.series.values()])
        assert name.encode() not in watched.collector.raw


def test_without_an_endpoint_the_packages_are_not_even_imported() -> None:
    code = (
        "import sys; from service.telemetry.tracing import Traces; from service.settings import Settings; "
        "traces = Traces.open(Settings(), 'worker'); assert not traces.on; "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.exporter')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=PATIENCE_SECONDS)
