from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import psutil
import pytest

from service.errors import TryLaterError
from service.models import barrier
from service.models.barrier import look, wait_for_barrier
from service.store.engine import session
from service.store.process_marks import mark_of, this_host
from service.store.tables import ServingWorker
from tests.waiting import PATIENCE_SECONDS, wait_until

pytestmark = pytest.mark.both_databases


@pytest.fixture
def worker(context):
    """Write a row: `worker("a", acknowledged=2)`; by default of this very process, which lives."""

    def write(
        boot_id: str,
        *,
        acknowledged: int = -1,
        lease: float = 3.0,
        host: str = "",
        pid: int = 0,
        expected: int = 2,
        process: str | None = "",
    ) -> None:
        now = context.now()
        row = ServingWorker(
            boot_id=boot_id, line="default", host=host or this_host(), pid=pid or os.getpid(),
            process=process or mark_of(pid or os.getpid()), expected=expected,
            acknowledged_generation=acknowledged, acknowledged_at=now if acknowledged >= 0 else None,
            started_at=datetime.now(UTC), heartbeat_at=now, lease_until=now + timedelta(seconds=lease),
        )  # fmt: skip
        with session(context.engine) as s:
            s.merge(row)
            s.commit()

    return write


@pytest.fixture
def reached(context, clock):
    """The barrier of generation 2 now, or none."""

    def find(**began: float) -> barrier.Barrier | None:
        try:
            return wait_for_barrier(
                context, 2, "d" * 64, began=clock.at - timedelta(**(began or {"seconds": 0})), timeout_seconds=-1
            )
        except TryLaterError:
            return None

    return find


def ended() -> dict[str, Any]:
    """Number and mark of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = mark_of(process.pid)
    process.communicate(b"\n", timeout=PATIENCE_SECONDS)
    return {"pid": process.pid, "process": mark}


def test_nobody_serves(reached):
    found = reached()
    assert (found.expected, found.processes) == (0, ())


def test_all_acknowledged(worker, reached, clock):
    worker("a", acknowledged=2)
    worker("b", acknowledged=3)  # beyond is fine: it cannot answer with less
    found = reached()
    assert found.expected == 2
    assert {row.boot_id: row.kind for row in found.processes} == {"a": "acknowledged", "b": "acknowledged"}
    assert found.to_dict()["processes"][0]["acknowledged_at"] == clock.at.isoformat()


def test_a_living_process_that_has_not_acknowledged_holds_it(worker, reached):
    worker("a", acknowledged=2)
    worker("b", acknowledged=1)
    assert reached() is None


def test_a_process_that_never_registered_holds_it(worker, reached):
    worker("a", acknowledged=2)
    assert reached() is None


def test_a_lapsed_lease_is_as_good_as_an_acknowledgement(worker, reached):
    worker("a", acknowledged=2)
    worker("b", acknowledged=1, lease=-0.1)
    found = reached(seconds=10)
    assert {row.boot_id: row.kind for row in found.processes} == {"a": "acknowledged", "b": "fenced"}
    fenced = next(row for row in found.processes if row.boot_id == "b")
    assert fenced.acknowledged_at is None


def test_a_lease_that_still_runs_holds_it_to_the_end(worker, reached, clock):
    worker("a", acknowledged=2, lease=60)
    worker("b", acknowledged=1, lease=3)
    assert reached() is None
    clock.advance(seconds=2.9)
    assert reached() is None
    clock.advance(seconds=0.2)
    assert reached() is not None


def test_a_host_whose_clock_may_differ_gets_one_lease_more(worker, reached, clock):
    worker("a", acknowledged=2, lease=60, expected=1)
    worker("b", acknowledged=1, lease=3, host="elsewhere", expected=1)
    clock.advance(seconds=5.9)
    assert reached() is None
    clock.advance(seconds=0.2)
    assert reached() is not None


def test_an_ended_process_is_accounted_for(worker, reached):
    worker("a", acknowledged=2)
    worker("b", acknowledged=1, **ended())
    found = reached(seconds=10)
    assert {row.boot_id: row.kind for row in found.processes} == {"a": "acknowledged", "b": "ended"}


def test_its_replacement_must_acknowledge_too(worker, reached):
    worker("a", acknowledged=2)
    worker("b", acknowledged=1, **ended())
    worker("c")  # registered, not loaded yet
    assert reached() is None
    worker("c", acknowledged=2)
    assert reached() is not None


def test_processes_gone_before_the_swap_are_not_cited(worker, reached):
    worker("a", acknowledged=2, expected=1)
    worker("b", acknowledged=1, lease=-100)
    assert [row.boot_id for row in reached(seconds=10).processes] == ["a"]


def test_every_host_must_have_its_number(worker, reached):
    worker("a", acknowledged=2, expected=1)
    worker("b", acknowledged=2, expected=2, host="elsewhere")
    assert reached() is None
    worker("c", acknowledged=2, expected=2, host="elsewhere")
    assert reached().expected == 3


def test_a_service_that_is_gone_for_good_does_not_hold_it(worker, reached):
    worker("a", acknowledged=1, **ended())
    worker("b", acknowledged=1, host="elsewhere", lease=-10)
    assert reached().expected == 0


def test_other_lines_do_not_matter(context, worker, reached):
    worker("a", acknowledged=1)
    with session(context.engine) as s:
        row = s.get(ServingWorker, "a")
        row.line = "other"
        s.add(row)
        s.commit()
    assert reached() is not None


def test_the_sentence_says_who_is_behind(context, worker):
    worker("a", acknowledged=1)
    with pytest.raises(TryLaterError) as caught:
        wait_for_barrier(context, 2, "d" * 64, began=context.now(), timeout_seconds=-1)
    assert f"process {os.getpid()} (alive) staged -1, acknowledged 1" in caught.value.detail


def test_waiting_ends_when_the_last_one_acknowledges(context, worker):
    worker("a", acknowledged=2)
    worker("b", acknowledged=1)
    waited = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 3:
            worker("b", acknowledged=2)

    found = wait_for_barrier(context, 2, "d" * 64, began=context.now(), timeout_seconds=5, sleep=sleep)
    assert len(found.processes) == 2
    assert len(waited) == 3


def test_a_zombie_has_ended(context, worker):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    mark = mark_of(process.pid)
    process.stdin.close()
    wait_until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE, "the process to be a zombie")
    worker("a", pid=process.pid, process=mark)
    assert [standing for _, standing in look(context).rows] == ["ended"]
    process.wait(PATIENCE_SECONDS)


def test_a_number_given_to_another_process_has_ended(context, worker):
    mark = mark_of(os.getpid())
    worker("a", process=mark.rpartition(" ")[0] + " 1")  # another one that began right after the kernel
    worker("b", process=mark)
    assert {row.boot_id: standing for row, standing in look(context).rows} == {"a": "ended", "b": "alive"}


def test_a_process_without_a_mark_is_known_by_its_lease_only(context, worker, clock):
    worker("a", process=None)
    with session(context.engine) as s:
        row = s.get_one(ServingWorker, "a")
        row.process, row.pid = None, ended()["pid"]
        s.add(row)
        s.commit()
    assert [standing for _, standing in look(context).rows] == ["alive"]
    clock.advance(seconds=60)
    assert [standing for _, standing in look(context).rows] == ["fenced"]


def test_a_wall_clock_that_jumps_does_not_end_a_living_process(context, worker, clock):
    """What counts is the start in ticks since boot, which no clock changes."""
    worker("a", lease=86_400 * 60)
    with session(context.engine) as s:
        row = s.get_one(ServingWorker, "a")
        row.started_at = datetime.now(UTC) - timedelta(days=30)
        s.add(row)
        s.commit()
    assert [standing for _, standing in look(context).rows] == ["alive"]


def test_processes_of_other_hosts_are_known_by_their_lease_only(context, worker):
    worker("a", host="elsewhere", pid=ended()["pid"], process="another-boot 4026531836 12345")
    assert [standing for _, standing in look(context).rows] == ["alive"]
