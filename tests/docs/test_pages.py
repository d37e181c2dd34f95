"""The pages as a site: built without a warning, whole without the internet, every code block checked."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from docs.generate_api import PREFIX, api_reference, openapi_document
from service.cli import app
from tests.waiting import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
UNCHECKED = {
    "text",
    "http",
    "{toctree}",
    "promql",
    "yaml",
    "toml",
    "dockerfile",
    "nginx",
}  # read by people, or tested elsewhere


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return openapi_document()


def blocks() -> Iterator[Any]:
    """(language, code) of every fenced block."""
    for page in PAGES:
        for i, match in enumerate(
            re.finditer(r"^```(\S*)\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        ):
            yield pytest.param(match[1], match[2], id=f"{page.relative_to(ROOT)}-{i}")


def test_the_api_reference_is_the_api(document: dict[str, Any]) -> None:
    assert (ROOT / "docs" / "api.md").read_text() == api_reference(document), (
        "run python docs/generate_api.py > docs/api.md"
    )


def test_the_site_builds_without_a_warning_and_asks_no_other_host(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    built = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert built.returncode == 0, built.stderr
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(
            r'<(?:script|link|img|source|iframe)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*', page.read_text()
        )
        assert not loaded, (page.name, loaded)


@pytest.mark.parametrize(("language", "code"), list(blocks()))
def test_a_code_block_holds(language: str, code: str, document: dict[str, Any]) -> None:
    if language == "python":
        _check_python(code)
    elif language == "json":
        json.loads(code)
    elif language == "sh":
        _check_shell(code, document)
    else:
        assert language in UNCHECKED, f"say in {Path(__file__).name} how a block of {language!r} is checked"


def _check_python(code: str) -> None:
    """It parses, and what it imports is there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}"), name.name
        elif isinstance(node, ast.Import):
            for name in node.names:
                importlib.import_module(name.name)


def _check_shell(code: str, document: dict[str, Any]) -> None:
    """The shell can parse it; its `expunge` commands and options exist; its calls of the API are routes."""
    parsed = subprocess.run(
        ["bash", "-n"], input=code, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    assert parsed.returncode == 0, parsed.stderr
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line.split(" #")[0]) if not line.startswith("field()") else []
        if words[:1] == ["expunge"]:
            _check_command(words[1:])
        if words[:1] == ["curl"]:
            _check_call(words, document)


def _check_command(words: list[str]) -> None:
    command: Any = get_command(app)
    while hasattr(command, "commands"):
        assert words[:1], command.name
        assert words[0] in command.commands, words
        command, words = command.commands[words[0]], words[1:]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    for word in words:
        if word.startswith("--"):
            assert word.split("=")[0] in options, word


def _check_call(words: list[str], document: dict[str, Any]) -> None:
    urls = [re.sub(r"^https?://[^/]+", "", word) for word in words if re.match(r"https?://", word)]
    for url in (url for url in urls if url.startswith(PREFIX)):
        path = url.removeprefix(PREFIX).split("?")[0]
        given = [route for route in document["paths"] if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route), path)]
        assert given, f"Expected a route of the API, got {path}"
        sends = any(word in {"-d", "--data", "--data-binary", "-F"} for word in words)
        method = words[words.index("-X") + 1].lower() if "-X" in words else "post" if sends else "get"
        assert any(method in document["paths"][route] for route in given), (method, path)
