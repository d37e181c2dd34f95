"""Metrics as Prometheus' own tool reads them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, generate_latest

import service.telemetry.serving_metrics
from service.console.metrics import DatabaseCollector, exposition
from service.context import Context
from service.settings import Settings

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
