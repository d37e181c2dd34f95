"""Benchmarks are run by hand and rarely: at least what they take from the product has to be there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))


@pytest.mark.filterwarnings("ignore")  # BentoML, which one script imports with the product, warns of its own parts
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.relative_to(ROOT / "benchmarks").as_posix())
def test_what_a_benchmark_imports_of_the_product_exists(script: Path) -> None:
    wanted = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in wanted:
        if node.module and node.module.split(".")[0] in {"service", "unlearning", "audit"}:
            module = importlib.import_module(node.module)
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")
