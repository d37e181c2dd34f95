"""The mark of serving processes, with real processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from service.store.serving_mark import ServingMark, is_served
from tests.waiting import PATIENCE_SECONDS, at_once, line_of

HOLDER = """
import sys
from pathlib import Path
from service.store.serving_mark import ServingMark
mark = ServingMark(Path(sys.argv[1]))
mark.hold()
print("held", flush=True)
sys.stdin.read()
"""


def test_it_is_held_as_long_as_one_process_serves(tmp_path: Path) -> None:
    path = tmp_path / "home" / "serving.lock"
    assert not is_served(path)
    one, other = ServingMark(path), ServingMark(path)
    one.hold()
    other.hold()
    one.release()
    assert is_served(path)
    other.release()
    other.release()
    assert not is_served(path)


def test_it_goes_with_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "serving.lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert line_of(holder) == "held\n"
        assert is_served(path)
    finally:
        holder.kill()
        holder.communicate(timeout=PATIENCE_SECONDS)
    assert not is_served(path)


def test_those_who_ask_at_once_do_not_take_each_other_for_one_that_serves(tmp_path: Path) -> None:
    path, found = tmp_path / "serving.lock", list[bool]()
    path.touch()
    at_once(*[lambda: found.extend(is_served(path) for _ in range(50))] * 2)
    assert not any(found)
