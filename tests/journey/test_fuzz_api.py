"""Schemathesis against the running service: calls made from its own OpenAPI document, and chains of them by its links.

`make fuzz-api` sends thousands; the slice in `make test` some hundreds. Every check of Schemathesis is on but those
named in `NOT_MEANT`, each for a reason.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.settings import Settings
from tests.journey.conftest import Service

pytestmark = [pytest.mark.journey, pytest.mark.timeout(1500)]

ROOT = Path(__file__).parents[2]
EFFORT = int(os.environ.get("EXPUNGE_FUZZ", "1"))
NOT_MEANT = {
    "positive_data_acceptance": "what a document can say is less than what is asked: a user id twice, a moment to come",
    "use_after_free": "a cancelled request is still there to be read",
    "ensure_resource_availability": "a request moves on by itself between two calls",
}


@pytest.fixture
def tiny_settings(tiny_settings: Settings) -> Settings:
    """A second in which a request can be cancelled; no quota stops the calls."""
    return tiny_settings.model_copy(update={"hold_seconds": 1.0, "most_open_requests": 1_000_000})


def test_no_generated_call_breaks_the_service_or_its_word(running: Callable[..., Service], tmp_path: Path) -> None:
    service = running()
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{service.settings.port}/v1/openapi.json",
            "--header", f"Authorization: Bearer {service.key}", "--checks", "all",
            "--exclude-checks", ",".join(NOT_MEANT), "--max-examples", str(4 * EFFORT), "--seed", "1",
            "--request-timeout", "60", "--suppress-health-check", "all",
            "--warnings", "off", "--no-color", "--generation-database", "none",
            "--continue-on-failure",
        ],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=1400,
        env={**os.environ, "SCHEMATHESIS_HOOKS": "tests.journey.fuzz_hooks", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    print(done.stdout[-6000:], done.stderr[-2000:])  # noqa: T201
    assert done.returncode == 0
    generated = re.search(r"([\d,]+) generated", done.stdout)
    assert generated is not None
    assert int(generated[1].replace(",", "")) >= (500 if EFFORT == 1 else 2000)
    covered = re.search(r"API Links: +(\d+) covered", done.stdout)
    assert covered is not None
    assert int(covered[1]) >= 2
    service.processes.check()
