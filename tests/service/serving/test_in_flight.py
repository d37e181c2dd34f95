"""What processes tell each other of their older answers; the processes here are cells with numbers of real ones."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.serving.in_flight import InFlightGenerations
from tests.waiting import PATIENCE_SECONDS


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[InFlightGenerations, InFlightGenerations]]:
    mine, theirs = (InFlightGenerations(tmp_path / "words", place, os.getpid()) for place in (1, 2))
    yield mine, theirs
    mine.close()
    theirs.close()


def test_older_answers_of_others_are_seen_and_nothing_else(
    two: tuple[InFlightGenerations, InFlightGenerations],
) -> None:
    mine, theirs = two
    assert not mine.others_have_older_than(5)
    mine.write(3)
    assert not mine.others_have_older_than(5)  # its own
    for theirs_now, is_older in ((4, True), (5, False), (6, False), (4, True), (0, False)):
        theirs.write(theirs_now)
        assert mine.others_have_older_than(5) is is_older


def test_a_process_that_ended_holds_nobody(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from service.serving.in_flight import InFlightGenerations; import os; "
    )
    program += f"InFlightGenerations(Path({str(tmp_path / 'words')!r}), 2, os.getpid()).write(4); print(os.getpid())"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True, timeout=PATIENCE_SECONDS
    )
    mine = InFlightGenerations(tmp_path / "words", 1, os.getpid())
    assert not mine.others_have_older_than(5)
    alive = InFlightGenerations(tmp_path / "words", 2, os.getppid())
    alive.write(4)
    assert mine.others_have_older_than(5)
    assert int(done.stdout) != os.getppid()
    alive.close()
    assert not mine.others_have_older_than(5)
    mine.close()


def test_places_beyond_the_last_begin_anew(tmp_path: Path) -> None:
    mine, theirs = (
        InFlightGenerations(tmp_path / "words", 1, os.getpid()),
        InFlightGenerations(tmp_path / "words", 258, os.getpid()),
    )
    theirs.write(1)
    assert mine.others_have_older_than(2)
    mine.close()
    theirs.close()
