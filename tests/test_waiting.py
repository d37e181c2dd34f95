from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from tests.waiting import PATIENCE_SECONDS, at_once, join, line_of, play, until, wait_until


def test_a_wait_gives_what_it_waited_for():
    answers = iter([None, [], "there"])
    assert wait_until(lambda: next(answers), "an answer") == "there"


def test_a_wait_ends_and_says_for_what():
    with pytest.raises(pytest.fail.Exception, match="Expected a miracle within 0 s"):
        wait_until(lambda: False, "a miracle", seconds=0.0)


def test_a_thread_that_does_not_end_fails_the_test():
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, args=(PATIENCE_SECONDS,), name="stuck")
    thread.start()
    with pytest.raises(pytest.fail.Exception, match="Expected thread stuck to end"):
        join(thread, seconds=0.0)
    gate.set()
    join(thread)


def test_functions_run_at_once_and_what_one_raises_is_raised():
    all_are_in = threading.Barrier(3)
    at_once(*[partial(all_are_in.wait, PATIENCE_SECONDS)] * 3)
    with pytest.raises(ZeroDivisionError):
        at_once(lambda: None, lambda: 1 / 0)


@pytest.fixture
def child() -> Iterator[subprocess.Popen[str]]:
    """A process that says two lines and what it is told."""
    program = "print('one'); print('two', flush=True); print(input(), flush=True)"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def test_a_line_of_a_child(child):
    assert line_of(child, "two") == "two\n"
    child.stdin.write("three\n")
    child.stdin.flush()
    assert line_of(child) == "three\n"
    assert line_of(child) == ""


def test_a_child_that_says_nothing_is_killed(child):
    with pytest.raises(pytest.fail.Exception, match="to say 'three' within 0 s"):
        line_of(child, "three", seconds=0.0)
    assert child.wait(PATIENCE_SECONDS) < 0


def test_a_scene_gives_its_result():
    async def scene() -> str:
        answers = iter(["", "there"])
        return await until(lambda: next(answers), "an answer")

    assert play(scene()) == "there"


def test_a_scene_that_does_not_end_fails_the_test():
    async def stuck() -> None:
        await asyncio.Event().wait()

    async def hopeful() -> None:
        await until(lambda: False, "a miracle", seconds=0.0)

    with pytest.raises(pytest.fail.Exception, match="stuck to end within 0 s"):
        play(stuck(), seconds=0.0)
    with pytest.raises(pytest.fail.Exception, match="Expected a miracle within 0 s"):
        play(hopeful())
