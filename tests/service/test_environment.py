"""Settings come from one object: nothing else reads the environment."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
READERS = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
ELSEWHERE = {"BaseSettings", "load_dotenv", "dotenv_values"}

ALLOWED = {
    "service/settings.py": "the settings themselves",
    "service/launch.py": "children get this process's environment, with the settings in it",
    "service/cli.py": "options of client commands, which have no settings; OMP_NUM_THREADS before NumPy",
    "service/app.py": "OMP_NUM_THREADS has to be set before torch is imported",
    "service/inference/network.py": "the child that converts gets this process's environment, and its import path",
    "service/telemetry/serving_metrics.py": "PROMETHEUS_MULTIPROC_DIR, which BentoML sets for prometheus_client",
}


def readers(tree: ast.Module) -> Iterator[str]:
    """Names by which a module reads or sets environment variables, or lets a library do so."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in READERS | ELSEWHERE:
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if alias.name in READERS | ELSEWHERE)
        elif isinstance(node, ast.keyword) and node.arg == "envvar":  # of a command's option
            yield node.arg


def test_only_settings_read_the_environment() -> None:
    paths = [path for package in ("service", "audit", "unlearning") for path in (ROOT / package).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in paths if any(readers(ast.parse(path.read_text())))}
    assert found == ALLOWED.keys(), "Add a field to service/settings.py and pass the settings down."


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.environ['X']",
        "from os import environ as e",
        "import os as system\nsystem.getenv('X')",
        "from pydantic_settings import BaseSettings",
        "import typer\ntyper.Option('', envvar='X')",
    ],
)
def test_every_way_to_the_environment_is_seen(text: str) -> None:
    assert list(readers(ast.parse(text)))
