from __future__ import annotations

import os
import random
import re
import string
import subprocess
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from service.keys import api_keys
from service.models.deployment import activate_first
from service.serving.process import ServingProcess
from service.telemetry import serving_metrics
from service.telemetry.catalog import SERVING
from tests.service.versions import add_version, image
from tests.waiting import PATIENCE_SECONDS, line_of, wait_until

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

ROOT = Path(__file__).parents[3]


def samples() -> dict[tuple[str, ...], float]:
    """Values by name and labels."""
    content, _ = serving_metrics.exposition()
    return {
        (sample.name, *(f"{key}={value}" for key, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(content.decode())
        for sample in family.samples
        if sample.name.startswith("expunge_")
    }


@pytest.fixture
def client(context, new_key):
    activate_first(context, add_version(context, 1))
    process = ServingProcess.of(context)
    process.start()
    with TestClient(process.app) as client:
        client.headers["Authorization"] = f"Bearer {new_key(api_keys.PREDICT, api_keys.READ)}"
        yield client
    process.stop()


def test_requests_are_counted_by_route_never_by_path(client):
    before = samples()
    client.get("/erasure-requests/alice-must-not-appear")
    client.get("/nothing/bob-must-not-appear")
    client.post("/predictions", content=image(1))
    client.post("/predictions", content=b"hello")
    client.request("BREW", "/predictions")
    after = samples()

    def grown(*key: str) -> float:
        return after.get(key, 0) - before.get(key, 0)

    name = "expunge_http_requests_total"
    assert grown(name, "method=GET", "route=/erasure-requests/{request_id}", "status=404") == 1
    assert grown(name, "method=POST", "route=/predictions", "status=200") == 1
    assert grown(name, "method=POST", "route=/predictions", "status=415") == 1
    assert grown("expunge_prediction_rejections_total", "reason=Unsupported image") == 1
    assert sum(grown("expunge_predictions_total", f"class_index={i}") for i in range(3)) == 1
    assert grown("expunge_batch_images_sum") == 1
    assert grown("expunge_decode_seconds_count") == 1
    assert after["expunge_serving_generation",] == 1
    text = serving_metrics.exposition()[0].decode()
    assert "must-not-appear" not in text
    assert "BREW" not in text


def test_latency_is_in_seconds(client):
    labels = ("expunge_http_request_duration_seconds_sum", "method=POST", "route=/predictions")
    before, began = samples().get(labels, 0.0), time.perf_counter()
    for _ in range(5):
        client.post("/predictions", content=image(1))
    most = time.perf_counter() - began
    assert 0 < samples()[labels] - before <= most  # a thousand times as many milliseconds


def test_names_have_the_prefix_and_base_units(client):
    client.post("/predictions", content=image(1))
    for family in text_string_to_metric_families(serving_metrics.exposition()[0].decode()):
        if family.name.startswith(("python_", "process_")):
            continue  # the library's own, outside of many processes
        assert family.name.startswith("expunge_")
        assert "millisecond" not in family.name
        assert family.documentation.endswith(".")


def test_a_thousand_random_paths_add_no_series(client):
    rng = random.Random(20261123)
    letters = string.ascii_letters + string.digits + "-._~/%"
    prefixes = ("/", "/erasure-requests/", "/certificates/", "/predictions/")
    for prefix in prefixes:
        client.get(f"{prefix}nobody")
    before = samples().keys()
    for _ in range(1000):
        path = "".join(rng.choices(letters, k=rng.randint(1, 40))).replace("%", "%25")
        assert client.get(f"{rng.choice(prefixes)}x{path}").status_code == 404
    assert samples().keys() == before


def test_the_first_burst_of_errors_is_an_increase(context, tmp_path):
    """Prometheus sees none in a series that begins above zero: each has its zero before the first call."""
    program = """if True:
        import sys
        from service.telemetry import serving_metrics as metrics
        metrics.Watch().start(tuple(each.split()) for each in sys.stdin)
        print(metrics.exposition()[0].decode())
    """
    process = ServingProcess.of(context)
    routes = documented(process)
    assert ("POST", "/predictions") in routes
    told = []
    process.watch.start = lambda routes=(): told.extend(routes)
    process.start()
    process.stop()
    text = subprocess.run(
        [sys.executable, "-c", program], input="".join(f"{' '.join(map(str, each))}\n" for each in told),
        env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)},
        capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS,
    ).stdout  # fmt: skip
    for method, route in routes:
        for status in (500, 503):
            labels = f'method="{method}",route="{route}",status="{status}"'
            assert f"expunge_http_requests_total{{{labels}}} 0.0" in text
        assert f'duration_seconds_count{{method="{method}",route="{route}"}} 0.0' in text
    assert 'expunge_prediction_rejections_total{reason="Try later"} 0.0' in text


def test_every_route_is_in_an_objective_or_the_docs_say_why_not(context):
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    objectives = [
        (operator, pattern)
        for operator, pattern in re.findall(r'requests_total\{route(=~|!~|=)"([^"]*)", status=', rules)
    ]
    _, reasons = (ROOT / "docs" / "metrics.md").read_text().split("In no objective are")
    for _, path in documented(ServingProcess.of(context)):
        judged = any((re.fullmatch(pattern, path) is None) == (operator == "!~") for operator, pattern in objectives)
        assert judged != (f"`{path}`" in reasons), path


def documented(process: ServingProcess) -> list[tuple[str, str]]:
    """Method and path of every route that the OpenAPI document has."""
    return [(method.upper(), path) for path, found in process.app.openapi()["paths"].items() for method in found]


def test_off_means_nothing_is_counted(context, new_key):
    activate_first(context, add_version(context, 1))
    quiet = replace(context, settings=context.settings.model_copy(update={"metrics": False}))
    process = ServingProcess.of(quiet)
    process.start()
    before = samples()
    with TestClient(process.app) as client:
        client.headers["Authorization"] = f"Bearer {new_key(api_keys.PREDICT)}"
        assert client.post("/predictions", content=image(1)).status_code == 200
        assert client.post("/predictions", content=b"hello").status_code == 415
    process.stop()
    assert samples() == before


def test_the_table_is_what_is_exported(client):
    client.post("/predictions", content=image(1))
    client.post("/predictions", content=b"hello")
    families = {
        family.name: family
        for family in text_string_to_metric_families(serving_metrics.exposition()[0].decode())
        if family.name.startswith("expunge_") and not family.name.endswith("_created")  # not told by many processes
    }
    assert families.keys() == {name.removesuffix("_total") for name in SERVING}
    for name, measure in SERVING.items():
        family = families[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (measure.kind, measure.help)
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert labels == set(measure.labels)


def test_several_processes_are_one_sum_and_their_killed_are_forgotten(tmp_path):
    """Four processes at once, one of them killed: counts of all four, and only the living ones' generation."""
    program = """if True:
        import sys
        from service.telemetry import serving_metrics as metrics
        watch = metrics.Watch()
        watch.start()
        watch.swap(int(sys.argv[1]), 0.5)
        for _ in range(25):
            watch.prediction(1, 0.97)
            watch.batch(3)
        print("told", flush=True)
        sys.stdin.readline()
        print(metrics.exposition()[0].decode())
    """
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", program, generation],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for generation in "4566"
    ]  # fmt: skip
    for process in started:
        assert line_of(process) == "told\n"
    registry = CollectorRegistry()
    MultiProcessCollector(registry, path=str(tmp_path))

    def counted() -> bool:
        predictions = registry.get_sample_value("expunge_predictions_total", {"class_index": "1"})
        return (predictions, registry.get_sample_value("expunge_batch_images_sum")) == (100, 300)

    wait_until(counted, "each process to count what it noted")
    started[0].kill()  # the one with the oldest generation
    started[0].communicate(timeout=PATIENCE_SECONDS)
    text, _ = started[1].communicate("go\n", timeout=PATIENCE_SECONDS)
    for process in started[2:]:
        process.communicate("go\n", timeout=PATIENCE_SECONDS)
    assert 'expunge_predictions_total{class_index="1"} 100.0' in text
    assert 'expunge_prediction_confidence_bucket{class_index="1",le="0.95"} 0.0' in text
    assert 'expunge_prediction_confidence_bucket{class_index="1",le="0.99"} 100.0' in text
    assert "expunge_batch_images_sum 300.0" in text
    assert "expunge_serving_generation 5.0" in text
    assert "pid=" not in text
    files = [path.stat() for path in tmp_path.iterdir()]
    assert all(file.st_blocks * 512 >= file.st_size for file in files)  # no page is left for which a disk has no room


@pytest.mark.parametrize("tidies", [True, False])
def test_ended_processes_leave_counts_but_no_state(tmp_path, tidies):
    """Two processes one after the other share a folder; the first ends with or without time to say so."""
    program = """if True:
        import os, sys
        from service.telemetry import serving_metrics as metrics
        metrics.forget_ended_processes()
        metrics.Watch().swap(int(sys.argv[1]), 0.2)
        if sys.argv[2] == "end":
            print(metrics.exposition()[0].decode())
        if sys.argv[2] == "tidy":
            metrics.forget_this_process()
        sys.stdout.flush()
        os._exit(0)
    """
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def run(generation: int, end: str) -> str:
        command = [sys.executable, "-c", program, str(generation), end]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
        ).stdout

    run(1, "tidy" if tidies else "die")
    text = run(2, "end")
    assert "expunge_swap_duration_seconds_count 2.0" in text
    assert "expunge_serving_generation 2.0" in text  # not the ended process's 1


def test_killed_processes_leave_no_more_files_than_ran_at_once(tmp_path):
    """Ten processes, two at a time, each killed: every count is kept, in the files of two; no scrape sees one less."""
    program = """if True:
        import sys
        from service.telemetry import serving_metrics as metrics
        watch = metrics.Watch()
        watch.start()
        for line in sys.stdin:
            watch.prediction(int(line), 0.97)
            watch.batch(3)
            print("told", flush=True)
    """
    scraper = """if True:
        import sys
        from service.telemetry import serving_metrics as metrics
        for line in sys.stdin:
            print(metrics.exposition()[0].decode(), flush=True)
            print("# end", flush=True)
    """
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}

    def start(code: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    with start(scraper) as reading:

        def counted() -> tuple[float, ...]:
            reading.stdin.write("go\n")
            reading.stdin.flush()
            text = "".join(iter(reading.stdout.readline, "# end\n"))
            found = {
                sample.name: sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if sample.labels in ({}, {"class_index": "1"})
            }
            names = ("expunge_predictions_total", "expunge_batch_images_sum", "expunge_prediction_confidence_count")
            return tuple(found.get(name, 0.0) for name in names)

        before = counted()
        for turn in range(1, 6):
            pair = [start(program) for _ in range(2)]
            seen = counted()  # while they take up what was left
            assert all(now >= then for now, then in zip(seen, before, strict=True))
            for process in pair:
                process.stdin.write("1\n")
                process.stdin.flush()
                assert line_of(process) == "told\n"
                process.kill()
                process.communicate(timeout=PATIENCE_SECONDS)
            before = counted()
            assert before == (2 * turn, 6 * turn, 2 * turn)
        reading.stdin.close()
    for kind in ("counter", "histogram"):
        assert len(list(tmp_path.glob(f"{kind}_*.db"))) <= 3  # of the two, and of the one that reads


def test_a_process_that_finds_no_room_for_its_counts_leaves_the_others_theirs(tmp_path):
    """An empty file would end every scrape of every process."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    program = """if True:
        import resource, sys
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), resource.RLIM_INFINITY))
        from service.telemetry import serving_metrics as metrics
        metrics.REJECTIONS.labels("Queue full").inc()
        print(metrics.exposition()[0].decode())
    """

    def run(most_bytes: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", program, str(most_bytes)]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
        )

    assert run(1 << 10).returncode != 0
    assert [path.name for path in tmp_path.glob("*.db") if not path.stat().st_size] == []
    assert not list(tmp_path.glob("*.partial"))
    text = run(1 << 30).stdout
    assert 'expunge_prediction_rejections_total{reason="Queue full"} 1.0' in text
