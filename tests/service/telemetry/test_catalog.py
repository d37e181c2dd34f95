"""Every metric is declared once, in the catalog; two modules make objects of what is there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from service.telemetry.catalog import SERVING, WORKER

ROOT = Path(__file__).resolve().parents[3]
MAKERS = {"service/telemetry/serving_metrics.py": SERVING, "service/console/metrics.py": WORKER}
METRIC = re.compile(r"expunge_[a-z_]+")


def test_only_the_makers_know_the_metrics_library() -> None:
    paths = [path for package in ("service", "audit", "unlearning") for path in (ROOT / package).rglob("*.py")]
    assert {str(path.relative_to(ROOT)) for path in paths if "import prometheus_client" in _imports(path)} == set(
        MAKERS
    )


def test_the_makers_name_every_metric_of_the_catalog_and_no_other() -> None:
    for path, measures in MAKERS.items():
        constants = [
            node.value for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Constant)
        ]
        assert {text for text in constants if isinstance(text, str) and METRIC.fullmatch(text)} == measures.keys()


def test_no_name_is_declared_twice() -> None:
    assert not SERVING.keys() & WORKER.keys()


def _imports(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {f"import {module.partition('.')[0]}" for module in modules}
