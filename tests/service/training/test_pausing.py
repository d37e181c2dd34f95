"""A process that pauses itself is woken up by the kernel, whoever else is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from service.training.pausing import wake_children
from tests.waiting import PATIENCE_SECONDS, line_of, wait_until

ROOT = Path(__file__).parents[3]
PAUSES = """
import sys, time
from service.training.pausing import pauser
pause = pauser()
began = time.monotonic()
print("pausing", flush=True)
pause(float(sys.argv[1]))
print(time.monotonic() - began, flush=True)
"""


@pytest.fixture
def pausing():
    started = []

    def start(seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", PAUSES, str(seconds)]
        started.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        assert line_of(started[-1]) == "pausing\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait(PATIENCE_SECONDS)
        process.stdout.close()


def test_it_stops_as_a_whole_and_goes_on_by_itself(pausing):
    process = pausing(1.0)
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "the process to stop")
    assert float(line_of(process)) >= 1.0
    assert process.wait(PATIENCE_SECONDS) == 0


def test_it_wakes_up_even_if_the_time_was_over_before_it_stopped(pausing):
    process = pausing(0.0)
    assert float(line_of(process)) >= 0.0
    assert process.wait(PATIENCE_SECONDS) == 0


def test_a_stopped_process_can_be_killed(pausing):
    process = pausing(3600.0)
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "the process to stop")
    process.kill()
    assert process.wait(PATIENCE_SECONDS) == -9


def test_who_slept_through_is_woken_by_its_parent(pausing):
    process = pausing(3600.0)
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "the process to stop")
    wake_children()
    assert float(line_of(process)) < 3600.0
    assert process.wait(PATIENCE_SECONDS) == 0
