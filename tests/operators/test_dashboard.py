"""The dashboard's file: as Grafana wants it, and asking for what there is."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana import panels
from tests.operators.expressions import exported, metrics_in

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "dashboards" / "expunge.json").read_text())
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
UNITS = {"short", "none", "s", "bytes", "percentunit", "reqps"}


def test_the_file_is_what_the_literal_says() -> None:
    assert panels.dashboard() == DASHBOARD, (
        "run python deploy/grafana/panels.py > deploy/grafana/dashboards/expunge.json"
    )


def test_its_rows() -> None:
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == ["Deadlines", "Pipeline", "Forgetting quality", "Serving", "Inputs and outputs"]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_a_panel_keeps_the_conventions(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert len(panel["description"]) > 40
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
    assert panel["targets"]
    for part in (panel, *panel["targets"]):
        assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert target["legendFormat"]
        assert metrics_in(target["expr"]) <= exported(), target["expr"]
        assert metrics_in(target["expr"]), target["expr"]
        assert target["expr"].count('job=~"$job"') == len(
            [word for word in target["expr"].split("{")[1:] if "}" in word]
        ), "each selector asks for the chosen jobs"
        if "rate(" in target["expr"]:
            assert "[$__rate_interval]" in target["expr"]
        assert ("_bucket" in target["expr"]) == ("histogram_quantile" in target["expr"])


def test_ids_differ_and_panels_do_not_overlap() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for one, other in combinations((panel["gridPos"] for panel in DASHBOARD["panels"]), 2):
        apart = (
            one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        )  # fmt: skip
        assert apart, (one, other)
        assert one["x"] + one["w"] <= 24


def test_the_variables() -> None:
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["job"]["datasource"]["uid"] == "${datasource}"


def test_provisioning_finds_it() -> None:
    (provider,) = yaml.safe_load((FOLDER / "provisioning/dashboards/expunge.yml").read_text())["providers"]
    assert provider["type"] == "file"
    (source,) = yaml.safe_load((FOLDER / "provisioning/datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
