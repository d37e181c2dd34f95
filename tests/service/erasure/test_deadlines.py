"""Trainings no longer stand back once the deadline of a request that waits for them is near."""

from __future__ import annotations

import time

import pytest
from structlog.testing import capture_logs

from service.erasure.deadlines import Deadlines
from service.requests.runs import give_up
from service.store.felt import Board
from service.worker import claim
from tests.service import tiny


@pytest.fixture
def board(context):
    board = Board(context.settings.training_board_path)
    yield board
    board.close()


def is_pressed(board: Board) -> bool:
    return board.is_pressed(time.monotonic())


def test_the_log_says_when_a_deadline_comes_near_and_that_it_no_longer_is(context, clock, board):
    deadlines, (filed,) = Deadlines(context), tiny.file(context, "s31")
    hours = (tiny.request_of(context, filed).due_at - context.now()).total_seconds() / 3600
    with capture_logs() as lines:
        deadlines.tend()
        assert not is_pressed(board)
        clock.advance(seconds=3600 * (hours - context.settings.training_deadline_hours + 1))
        deadlines.tend()
        deadlines.tend()
        assert is_pressed(board)
        give_up(context, claim(context, tiny.POLICY), "No rung passed.")  # no training brings it on
        deadlines.tend()
        assert not is_pressed(board)
    assert [line["event"] for line in lines if line["event"].startswith("deadline.")] == [
        "deadline.near",
        "deadline.no_longer_near",
    ]
    near = next(line for line in lines if line["event"] == "deadline.near")
    assert near["hours_left"] == pytest.approx(47, abs=0.2)
    assert filed not in str(near)


def test_no_request_is_no_deadline(context, board):
    Deadlines(context).tend()
    assert not is_pressed(board)
