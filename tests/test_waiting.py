from __future__ import annotations

import threading

import pytest

from tests.waiting import join, wait_until


def test_a_wait_gives_what_it_waited_for():
    answers = iter([None, [], "there"])
    assert wait_until(lambda: next(answers), "an answer") == "there"


def test_a_wait_ends_and_says_for_what():
    with pytest.raises(pytest.fail.Exception, match="Expected a miracle within 0 s"):
        wait_until(lambda: False, "a miracle", seconds=0.0)


def test_a_thread_that_does_not_end_fails_the_test():
    gate = threading.Event()
    thread = threading.Thread(target=gate.wait, name="stuck")
    thread.start()
    with pytest.raises(pytest.fail.Exception, match="Expected thread stuck to end"):
        join(thread, seconds=0.0)
    gate.set()
    join(thread)
