"""What tests of several packages share."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch: the service's processes have one core each too
os.environ.setdefault("EXPUNGE_TRAINING_PRIORITY", "normal")  # tests run side by side: no processor is ever idle

import pytest
from hypothesis import HealthCheck, settings

from tests.postgres import PostgresServer

# As hypothesis does by itself in CI: an example takes as long as it takes.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server for all tests that leave it running; who stops or restarts one starts its own."""
    with PostgresServer.started() as server:
        yield server


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Iterator[None, pytest.TestReport, pytest.TestReport]:
    """In CI a test that skips has failed, whatever it lacks; but CI has no GPU."""
    report = yield
    if "gpu" not in item.keywords:
        _refuse_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Iterator[None, pytest.CollectReport, pytest.CollectReport]:
    """In CI a module that skips as a whole has failed."""
    report = yield
    _refuse_skip(report)
    return report


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.longrepr = f"{reason}\nIn CI nothing skips for want of anything but a GPU: install it there."
