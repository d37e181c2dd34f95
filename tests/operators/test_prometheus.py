"""Metrics as Prometheus' own tool reads them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from prometheus_client import REGISTRY, generate_latest

import service.telemetry.serving_metrics
from service.console.listener import Listener
from service.console.metrics import DatabaseCollector, exposition
from service.context import Context
from service.launch import free_ports
from service.settings import Settings
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.prometheus


def check(promtool: str, text: bytes) -> str:
    """What `promtool check metrics` complains of."""
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=60)
    return (done.stdout + done.stderr).decode() if done.returncode else ""


def test_the_workers_metrics_are_clean(program: Callable[[str, str], str], tmp_path: Path) -> None:
    content, _ = exposition(DatabaseCollector(Context.open(Settings(home=tmp_path))))
    assert check(program("promtool", "prometheus"), content) == ""


def test_the_serving_processes_metrics_are_clean(program: Callable[[str, str], str]) -> None:
    families = [family for family in REGISTRY.collect() if family.name.startswith("expunge_")]
    assert families, service.telemetry.serving_metrics.__name__
    lines = generate_latest(REGISTRY).decode().splitlines()
    ours = [line for line in lines if "expunge_" in line]
    assert check(program("promtool", "prometheus"), ("\n".join(ours) + "\n").encode()) == ""


def test_a_live_prometheus_reads_with_the_token(program: Callable[[str, str], str], tmp_path: Path) -> None:
    prometheus, (port, console) = program("prometheus", "prometheus"), free_ports(2)
    settings = Settings(home=tmp_path / "home", console_port=console, metrics_token="a-token-of-the-scraper")
    (tmp_path / "token").write_text(f"{settings.metrics_token}\n")
    jobs = "".join(
        f"  - job_name: {name}\n{more}    static_configs: [{{targets: ['127.0.0.1:{console}']}}]\n"
        for name, more in (
            ("with", f"    authorization: {{credentials_file: {tmp_path}/token}}\n"), ("without", ""),
        )
    )  # fmt: skip
    (tmp_path / "prometheus.yml").write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs:\n{jobs}")
    command = [
        prometheus, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/series",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip

    def up() -> dict[str, str]:
        try:
            found = httpx.get(
                f"http://127.0.0.1:{port}/api/v1/query", params={"query": "up"}, timeout=PATIENCE_SECONDS
            ).json()
        except httpx.TransportError:
            return {}
        return {each["metric"]["job"]: each["value"][1] for each in found.get("data", {}).get("result", ())}

    with Listener(Context.open(settings)), (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until(lambda: up().keys() == {"with", "without"}, "Prometheus to have scraped both")
            wait_until(lambda: up() == {"with": "1", "without": "0"}, "the scrape with the token alone to be answered")
        finally:
            process.kill()
            process.wait(PATIENCE_SECONDS)
