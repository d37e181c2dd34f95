"""What the processes of a machine tell each other of predictions and trainings."""

from __future__ import annotations

import numpy as np
import pytest

from service.store.felt import BOUNDS, Board, Period


@pytest.fixture
def path(tmp_path):
    return tmp_path / "felt.numbers"


def test_predictions_count_by_whether_anything_trained_beside_them(path):
    governor, serving = Board(path), Board(path, place=3)
    governor.period = Period(10.0, 11.0, 12.0)
    serving.note(8.9, 9.0)  # before
    serving.note(9.9, 10.1)  # the training began meanwhile
    serving.note(10.4, 10.5)
    serving.note(10.9, 11.4)  # it paused meanwhile
    serving.note(11.4, 11.5)  # in the pause
    alone, beside = governor.felt()
    assert (alone.sum(), beside.sum()) == (2, 3)
    assert alone[np.searchsorted(BOUNDS, 0.1)] == 2
    assert beside[np.searchsorted(BOUNDS, 0.5)] == 1


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e-4, 0.0123, 1.0, 1e6])
def test_every_length_has_its_bucket(path, seconds):
    board = Board(path)
    board.note(0.0, seconds)
    (bucket,) = np.flatnonzero(board.felt().sum(axis=0))
    assert seconds <= BOUNDS[bucket] * 1.0001 or bucket == len(BOUNDS) - 1
    assert bucket == 0 or seconds >= BOUNDS[bucket - 1] * 0.9999


def test_processes_count_beside_each_other(path):
    for place in range(3):
        Board(path, place).note(0.0, 0.01)
    assert Board(path).felt().sum() == 3


def test_a_near_deadline_is_forgotten_when_nobody_repeats_it(path):
    board = Board(path)
    assert not board.is_in_hurry(100.0)
    board.press(100.0)
    assert board.is_in_hurry(130.0)
    assert not board.is_in_hurry(200.0)
    board.press(200.0)
    board.relax()
    assert not board.is_in_hurry(201.0)


def test_time_is_kept_by_purpose(path):
    Board(path).spend("erasures", 1.0, 2.0)
    Board(path).spend("erasures", 0.5, 0.0)
    spent = Board(path).spent()
    assert spent["erasures", "running"] == 1.5
    assert spent["erasures", "paused"] == 2.0
    assert spent["commands", "paused"] == 0.0
