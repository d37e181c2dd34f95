from __future__ import annotations

import ast
import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.waiting import PATIENCE_SECONDS, at_once, join, line_of, play, until, wait_until

TESTS = Path(__file__).parent


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


def test_a_coroutine_gives_its_result():
    async def played() -> str:
        answers = iter(["", "there"])
        return await until(lambda: next(answers), "an answer")

    assert play(played()) == "there"


def test_a_coroutine_that_does_not_end_fails_the_test():
    async def stuck() -> None:
        await asyncio.Event().wait()

    async def hopeful() -> None:
        await until(lambda: False, "a miracle", seconds=0.0)

    with pytest.raises(pytest.fail.Exception, match="stuck to end within 0 s"):
        play(stuck(), seconds=0.0)
    with pytest.raises(pytest.fail.Exception, match="Expected a miracle within 0 s"):
        play(hopeful())


ENDLESS = {
    "wait": "an event, barrier or process is waited for without a timeout",
    "join": "a thread is joined without a timeout: use `join`",
    "result": "a future is waited for without a timeout",
    "get": "a queue is waited for without a timeout",
    "communicate": "a process is waited for without a timeout",
    "readline": "a child's line is waited for without an end: use `line_of`",
}
CALLS = {
    **{f"subprocess.{name}": "a program is run" for name in ("run", "call", "check_call", "check_output")},
    **{f"httpx.{name}": "a call has the five seconds of httpx" for name in ("get", "post", "Client")},
}
HTTP_METHODS = {"get", "post", "put", "patch", "delete", "request"}
SLEEPS = {"time.sleep", "asyncio.sleep"}
REAL_SERVERS = ("tests/journey/", "tests/operators/", "tests/faults/")  # which under load may refuse
SLEEPERS = {  # whose sleeps decide nothing
    "tests/object_store.py": "is a slow store",
    "tests/service/callbacks/test_outbound.py": "is a server that says a little now and then",
    "tests/faults": "lets a fault come at a random time",
}


def is_impatient(call: ast.Call) -> bool:
    """Whether a call gives a number of seconds that a loaded machine may need."""
    (timeout,) = [keyword.value for keyword in call.keywords if keyword.arg == "timeout"]
    return isinstance(timeout, ast.Constant) and timeout.value < PATIENCE_SECONDS


def is_answer(node: ast.AST) -> bool:
    """Whether an expression is a call of a server."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in HTTP_METHODS


def plain_waits(code: str, path: str) -> list[str]:
    """Where a file waits without an end or for a fixed time, as far as its syntax tells."""
    tree, found = ast.parse(code), []
    awaited = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Await)}  # `play` ends those
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
            continue
        name, what = call.func.attr, ast.unparse(call.func)
        has_end = "timeout" in {keyword.arg for keyword in call.keywords}
        takes_input = name == "communicate"  # what stands first is no timeout
        reason = ""
        if what in CALLS and not has_end:
            reason = f"{CALLS[what]}, without a timeout of ours"
        elif what in CALLS and is_impatient(call):
            reason = f"{CALLS[what]}, with less than PATIENCE_SECONDS"
        elif name == "json" and is_answer(call.func.value) and path.startswith(REAL_SERVERS):
            reason = "an answer's body is read whatever its status: use `raise_for_status`"
        elif name in ENDLESS and not has_end and (takes_input or not call.args) and id(call) not in awaited:
            reason = ENDLESS[name]
        elif what in SLEEPS and ast.unparse(call.args[0]) != "0" and not path.startswith(tuple(SLEEPERS)):
            reason = "a fixed time is slept: use `wait_until` or `until`"
        if reason:
            found.append(f"{path}:{call.lineno}: {reason}")
    return found


def test_no_test_waits_without_an_end_or_for_a_fixed_time():
    root = TESTS.parent
    found = [
        complaint
        for path in sorted(TESTS.rglob("*.py"))
        if path.name != "waiting.py"
        for complaint in plain_waits(path.read_text(), path.relative_to(root).as_posix())
    ]
    assert not found, "\n".join(["Expected waits with an end, see tests/waiting.py:", *found])


@pytest.mark.parametrize(
    "code",
    [
        "gate.wait()", "thread.join()", "pool.submit(f).result()", "queue.get()", "process.communicate(b'x')",
        "process.stdout.readline()", "subprocess.run(['true'], check=True)", "httpx.get(url)",
        "time.sleep(0.1)", "asyncio.sleep(1)", "subprocess.run(['true'], timeout=60)", "client.get(url).json()",
    ],
)  # fmt: skip
def test_plain_waits_are_seen(code):
    assert len(plain_waits(code, "tests/journey/test_x.py")) == 1


@pytest.mark.parametrize(
    "code",
    [
        "gate.wait(9)", "await event.wait()", "', '.join(names)", "headers.get('x')", "process.communicate(timeout=9)",
        "subprocess.run(['true'], timeout=120)", "asyncio.sleep(0)", "future.result(0)",
        "client.get(url).raise_for_status().json()", "run(['true'], timeout=PATIENCE_SECONDS)",
    ],
)  # fmt: skip
def test_waits_with_an_end_are_let_through(code):
    assert plain_waits(code, "tests/test_x.py") == []
