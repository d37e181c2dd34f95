"""Alert rules: that they fire when they must and only then, and lead somewhere."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.telemetry.catalog import SERVING, WORKER
from tests.operators.expressions import exported, metrics_in

pytestmark = pytest.mark.prometheus

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", ["alerts.test.yml", "alerts.days.test.yml"])
def test_alerts_fire_when_they_must_and_only_then(program: Callable[[str, str], str], file: str) -> None:
    run(program("promtool", "prometheus"), "test", "rules", file)


def test_prometheus_takes_the_configuration(program: Callable[[str, str], str]) -> None:
    run(program("promtool", "prometheus"), "check", "config", "prometheus.yml")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_is_tested_both_ways_and_has_a_runbook(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    cases = [
        case
        for file in FOLDER.glob("*.test.yml")
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["alertname"] == name
    ]
    assert any(case.get("exp_alerts") for case in cases)
    assert any(not case.get("exp_alerts") for case in cases)
    assert alert["labels"]["severity"] in ("page", "ticket")
    assert alert["annotations"]["summary"].endswith(".")
    runbook = (ROOT / alert["annotations"]["runbook"]).read_text()
    title, *_ = runbook.splitlines()
    assert name.startswith(title.removeprefix("# "))
    for part in ("**Means.**", "**Look.**", "**Do.**"):
        assert part in runbook


def test_no_runbook_is_without_an_alert() -> None:
    linked = {Path(alert["annotations"]["runbook"]).name for alert in ALERTS}
    assert {path.name for path in (ROOT / "docs" / "runbooks").glob("*.md")} - {"index.md"} == linked


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_ask_for_what_there_is(rule: dict[str, Any]) -> None:
    recorded = {each["record"] for each in RULES if "record" in each}
    assert metrics_in(rule["expr"]) <= exported() | recorded | {"up"}
    for bound in re.findall(r'_bucket\{[^}]*le="([^"]+)"', rule["expr"]):
        buckets = {**SERVING, **WORKER}["expunge_http_request_duration_seconds"].buckets
        assert float(bound) in buckets
