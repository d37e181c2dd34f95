"""Threads: all indices in order, and the first error in order."""

from __future__ import annotations

import pytest

from unlearning.faces.threads import map_spans


@pytest.mark.parametrize("workers", [None, 1, 5])
@pytest.mark.parametrize("n", [0, 1, 32, 33, 200])
def test_all_indices_in_order(n, workers):
    assert [index for span in map_spans(list, n, workers=workers) for index in span] == list(range(n))


def test_few_runs_are_handed_out_ahead_of_those_asked_for():
    started = []
    found = map_spans(started.append, 32_000, workers=2)
    next(found)
    assert len(started) <= 6
    found.close()
    assert len(started) <= 6


def test_the_first_error_in_order_is_raised():
    def work(span):
        if span.start >= 64:
            raise ValueError(f"failed at {span.start}")

    with pytest.raises(ValueError, match="failed at 64"):
        list(map_spans(work, 32_000, workers=2))
