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
from tests.operators.scraping import prometheus
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.prometheus


def check(promtool: str, text: bytes) -> str:
    """What `promtool check metrics` complains of."""
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, check=False, timeout=PATIENCE_SECONDS
    )
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
    (console,) = free_ports(1)
    settings = Settings(home=tmp_path / "home", console_port=console, metrics_token="a-token-of-the-scraper")
    (tmp_path / "token").write_text(f"{settings.metrics_token}\n")
    target = {"static_configs": [{"targets": [f"127.0.0.1:{console}"]}]}
    config: dict[str, object] = {
        "global": {"scrape_interval": "1s"},
        "scrape_configs": [
            {"job_name": "with", "authorization": {"credentials_file": f"{tmp_path}/token"}} | target,
            {"job_name": "without"} | target,
        ],
    }

    def up(api: str) -> dict[str, str]:
        found = (
            httpx.get(f"{api}/query", params={"query": "up"}, timeout=PATIENCE_SECONDS)
            .raise_for_status()
            .json()["data"]["result"]
        )
        return {each["metric"]["job"]: each["value"][1] for each in found}

    with (
        Listener(Context.open(settings)),
        prometheus(program("prometheus", "prometheus"), tmp_path, config) as api,
    ):
        wait_until(lambda: up(api).keys() == {"with", "without"}, "Prometheus to have scraped both")
        wait_until(lambda: up(api) == {"with": "1", "without": "0"}, "the scrape with the token alone to be answered")
