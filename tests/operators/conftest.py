"""Programs of the machine that some tests need: without them they skip with the sentence that says how to get them."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import pytest

from tests.journey.conftest import tiny_home

__all__ = ["program", "tiny_home"]


@pytest.fixture(scope="session")
def program() -> Callable[[str, str], str]:
    """`program("promtool", "prometheus")`: path of a program, of the Debian package that has it."""

    def find(name: str, package: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"Needs {name}: run apt-get install {package}.")
        return path

    return find
