"""Tests mirror the packages: a module has its test file, or names the one that tests it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
ELSEWHERE = re.compile(r"Tested in `(tests/[\w/]+\.py)`")
BY_CONTRACT = {"unlearning/methods/spare.py", "unlearning/procedures/oracles.py", "unlearning/running.py"}
"""Tested in `tests/unlearning/methods/`. They do not say so: their text is the version of the code by which banks and
qualifications of methods are found."""


def modules() -> list[Path]:
    """Modules with code of their own, from the root."""
    found = (path for package in ("audit", "service", "unlearning") for path in (ROOT / package).rglob("*.py"))
    steps = ROOT / "service" / "store" / "migrations" / "versions"
    return sorted(path.relative_to(ROOT) for path in found if not path.stem.startswith("__") and path.parent != steps)


def is_tested(module: Path) -> bool:
    """Whether there is a test file of the module's own, or the one that it names."""
    named = ELSEWHERE.search(ast.get_docstring(ast.parse((ROOT / module).read_text())) or "")
    own = Path("tests", module.parent, f"test_{module.name}")
    return (ROOT / own).exists() or (named is not None and (ROOT / named[1]).exists())


def test_every_module_has_its_test_file_or_names_one() -> None:
    found = modules()
    assert len(found) > 250
    assert {module.as_posix() for module in found if not is_tested(module)} == BY_CONTRACT
