"""That a line has one worker at any time, whatever the homes, machines and clocks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from service.context import LINE, Context
from service.erasure.lease import LineLease
from service.errors import StartupError
from service.launch import environment
from service.settings import Settings
from service.store.engine import engine_of, reading, session
from service.store.process_marks import has_ended, mark_of
from service.store.tables import OpenLine, WorkerLease
from tests.waiting import PATIENCE_SECONDS, line_of, wait_until

pytestmark = pytest.mark.both_databases

LONG = 600.0  # seconds of a lease in this process, which it would end by SIGKILL
NOBODY = 2**22 - 1  # a number that no process has


class Steady:
    """A clock that only sleeping moves, and what happens then."""

    def __init__(self, on_sleep: Callable[[], None] = lambda: None) -> None:
        self.at, self._on_sleep = 0.0, on_sleep

    def __call__(self) -> float:
        return self.at

    def sleep(self, seconds: float) -> None:
        self.at += seconds
        self._on_sleep()


def never(_seconds: float) -> None:
    raise AssertionError("Expected the line to be taken without watching.")


def row_of(context: Context) -> WorkerLease:
    with reading(context.engine) as s:
        return s.get_one(WorkerLease, LINE)


def other_worker(context: Context, *, pid: int = 1, process: str | None = None, ahead: float = 0) -> None:
    """A row as a worker writes it whose clock is so many seconds ahead."""
    now = context.now() + timedelta(seconds=ahead)
    with session(context.engine) as s:
        s.merge(
            WorkerLease(
                line=LINE, holder="x", host="elsewhere", pid=pid, process=process, fencing_token=7, n_subjects=40,
                heartbeat_at=now, lease_until=now + timedelta(seconds=10), waits_since=None,
            )
        )  # fmt: skip
        s.commit()


def elsewhere(context: Context) -> Context:
    """The same line and database, another home."""
    home = context.settings.home.with_name("another home")
    home.mkdir()
    url = context.settings.effective_database_url
    return replace(context, settings=context.settings.model_copy(update={"home": home, "database_url": url}))


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(context: Context, tmp_path: Path) -> Iterator[Start]:
    """Starts a worker's lease in a process and a home of its own: `start("a", seconds=2)`."""
    url = context.settings.effective_database_url
    with ExitStack() as stack:

        def begin(home: str, *, seconds: float = 60.0) -> subprocess.Popen[str]:
            settings = Settings(home=tmp_path / home, database_url=url)
            settings.home.mkdir(exist_ok=True)
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.service.lease_holder", str(seconds)], env=environment(settings),
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.callback(process.communicate, timeout=PATIENCE_SECONDS)
            stack.callback(process.kill)
            return process

        yield begin


def working(process: subprocess.Popen[str]) -> bool:
    """Wait until it works or ends."""
    return line_of(process) == "working\n"


def test_of_two_processes_with_two_homes_one_works_at_any_time(context: Context, start: Start) -> None:
    first = start("a")
    assert working(first)
    held = row_of(context)
    second = start("b")
    assert not working(second)
    assert f"found process {first.pid} on" in second.communicate(timeout=PATIENCE_SECONDS)[1]
    assert second.returncode == 1
    assert first.poll() is None
    assert row_of(context).holder == held.holder
    assert row_of(context).heartbeat_at > held.heartbeat_at
    first.kill()
    third = start("b")
    assert working(third)
    assert row_of(context).pid == third.pid
    assert not working(start("a"))


def test_a_second_worker_of_the_same_home_is_refused_while_the_first_lives(context: Context) -> None:
    with LineLease(context, LONG):
        with pytest.raises(StartupError, match=f"found process {os.getpid()}"), LineLease(context, LONG, sleep=never):
            pass
        token = row_of(context).fencing_token
    with LineLease(context, LONG, sleep=never):
        assert row_of(context).fencing_token == token + 1


def test_who_ends_as_asked_lets_go_of_the_line(context: Context, clock: Any) -> None:
    with LineLease(context, LONG):
        clock.advance(days=-1)
    with LineLease(elsewhere(context), LONG, sleep=never):
        pass


def test_who_ends_in_the_middle_of_a_run_lets_go_of_it_by_being_gone(context: Context) -> None:
    """A thread may be in a step until the process ends."""
    with LineLease(context, LONG), session(context.engine) as s:
        s.add(OpenLine(line=LINE, run_id="r"))
        s.commit()
    steady = Steady()
    with LineLease(elsewhere(context), LONG, steady=steady, sleep=steady.sleep):
        assert steady.at >= 1.5 * LONG


@pytest.mark.parametrize("is_reaped", [True, False], ids=["gone", "zombie"])
def test_a_worker_killed_on_this_machine_is_replaced_at_once(context: Context, start: Start, is_reaped: bool) -> None:
    killed = start("a")
    assert working(killed)
    killed.kill()
    if is_reaped:
        killed.wait(PATIENCE_SECONDS)
    else:
        how = os.WEXITED | os.WNOWAIT | os.WNOHANG
        wait_until(lambda: os.waitid(os.P_PID, killed.pid, how), "the worker to be a zombie")
    with LineLease(context, LONG, sleep=never):
        assert row_of(context).pid == os.getpid()


def test_a_number_that_went_to_another_process_binds_nobody(context: Context) -> None:
    realm, _, _start = str(mark_of(os.getpid())).rpartition(" ")
    other_worker(context, pid=os.getpid(), process=f"{realm} 1")
    with LineLease(context, LONG, sleep=never):
        pass


@pytest.mark.parametrize("place", ["another container", "another machine", "an older version"])
def test_a_number_of_another_place_is_not_taken_for_one_of_ours(context: Context, place: str) -> None:
    boot, namespace, start = str(mark_of(os.getpid())).split()
    process = {
        "another container": f"{boot} 1{namespace} {start}",
        "another machine": f"1{boot} {namespace} {start}",
        "an older version": None,
    }[place]
    other_worker(context, pid=NOBODY, process=process)
    steady = Steady()
    with LineLease(context, LONG, steady=steady, sleep=steady.sleep):
        assert steady.at >= 1.5 * LONG


def test_a_living_process_that_is_silent_is_replaced_after_watching(context: Context) -> None:
    other_worker(context, pid=os.getpid(), process=mark_of(os.getpid()))
    steady = Steady()
    with LineLease(context, LONG, steady=steady, sleep=steady.sleep):
        assert steady.at >= 1.5 * LONG


@pytest.mark.parametrize("ahead", [-86_400.0, 0.0, 86_400.0])
def test_silence_is_measured_on_the_steady_clock_whatever_the_wall_clocks_say(context: Context, ahead: float) -> None:
    other_worker(context, ahead=ahead)
    steady = Steady()
    with LineLease(context, LONG, steady=steady, sleep=steady.sleep):
        assert row_of(context).fencing_token == 8
        assert row_of(context).n_subjects == 40
        assert 1.5 * LONG <= steady.at <= 1.7 * LONG


@pytest.mark.parametrize("ahead", [-86_400.0, 0.0, 86_400.0])
def test_a_lease_that_is_renewed_is_respected_whatever_the_wall_clocks_say(
    context: Context, clock: Any, ahead: float
) -> None:
    other_worker(context, ahead=ahead)

    def renew() -> None:
        clock.advance(seconds=1)
        other_worker(context, ahead=ahead)

    steady = Steady(renew)
    refused = LineLease(context, LONG, steady=steady, sleep=steady.sleep)
    with pytest.raises(StartupError, match="found process 1 on elsewhere"), refused:
        pass
    assert row_of(context).fencing_token == 7


@pytest.mark.parametrize("jump", [-7200.0, 7200.0])
def test_a_jump_of_the_holders_clock_neither_ends_it_nor_lets_another_in(
    context: Context, clock: Any, jump: float
) -> None:
    with LineLease(context, LONG) as held:
        clock.advance(seconds=jump)
        steady = Steady(held.renew)
        refused = LineLease(elsewhere(context), LONG, steady=steady, sleep=steady.sleep)
        with pytest.raises(StartupError, match="Expected no other worker"), refused:
            pass
        assert held.renew()


def test_a_renewal_between_the_last_look_and_the_taking_is_seen(context: Context, clock: Any) -> None:
    other_worker(context)

    def wake() -> Any:
        clock.advance(seconds=1)
        other_worker(context)
        return clock()

    steady = Steady()
    late = LineLease(replace(context, now=wake), LONG, steady=steady, sleep=steady.sleep)
    with pytest.raises(StartupError, match="found process 1 on elsewhere"), late:
        pass


def test_who_cannot_renew_ends_itself_though_the_renewal_waits(context: Context, start: Start) -> None:
    holder = start("a", seconds=4)
    assert working(holder)
    with session(context.engine) as s:
        s.get_one(WorkerLease, LINE, with_for_update=True)
        holder.wait(PATIENCE_SECONDS)  # while the row is locked
    assert holder.returncode == -signal.SIGKILL
    assert "worker.lease_ran_out" in "".join(holder.communicate(timeout=PATIENCE_SECONDS))


def test_a_renewal_that_waits_for_a_takeover_does_not_renew_what_is_anothers(
    context: Context, start: Start, dialect: str
) -> None:
    holder = start("a", seconds=60)
    assert working(holder)
    with session(context.engine) as s:
        row = s.get_one(WorkerLease, LINE, with_for_update=True)
        if dialect == "postgresql":
            wait_until(lambda: is_somebody_waiting(context.settings), "the holder to wait for the row")
            assert holder.poll() is None
        row.holder, row.fencing_token, row.heartbeat_at = "y", row.fencing_token + 1, context.now()
        s.add(row)
        s.commit()
    holder.wait(PATIENCE_SECONDS)
    assert holder.returncode == -signal.SIGKILL
    assert (row_of(context).holder, row_of(context).heartbeat_at) == ("y", context.now())


def is_somebody_waiting(settings: Settings) -> bool:
    """Whether a statement waits for a lock."""
    engine = engine_of(settings)
    with engine.connect() as connection:
        n_waiting = connection.scalar(sa.text("SELECT count(*) FROM pg_locks WHERE NOT granted"))
    engine.dispose()
    return bool(n_waiting)


@pytest.mark.two_writers
def test_of_two_first_workers_at_once_one_is_refused(context: Context) -> None:
    firsts = [lambda: other_worker(context)]

    @sa.event.listens_for(context.engine, "before_cursor_execute")
    def _first(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO worker_leases") and firsts:
            firsts.pop()()

    with pytest.raises(StartupError, match="Expected no other worker"), LineLease(context, LONG):
        pass


def test_a_running_process_has_not_ended_and_one_that_is_gone_has() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    mark = mark_of(child.pid)
    assert mark is not None
    assert mark == mark_of(child.pid) != mark_of(os.getpid())
    assert not has_ended(child.pid, mark)
    child.communicate(timeout=PATIENCE_SECONDS)
    assert has_ended(child.pid, mark)
    assert mark_of(child.pid) is None
