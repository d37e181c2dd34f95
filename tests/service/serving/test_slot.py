from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import TryLaterError
from service.models.commit_word import CommitWord
from service.serving.slot import InFlight, Lease, ModelSlot, Moment
from tests.waiting import at_once


class Hands:
    """A clock for leases, moved by hand."""

    def __init__(self) -> None:
        self.steady, self.wall = 100.0, 5_000.0

    def __call__(self) -> Moment:
        return Moment(self.steady, self.wall)

    def advance(self, seconds: float) -> None:
        self.steady += seconds
        self.wall += seconds


def engine(generation: int) -> Any:
    return SimpleNamespace(generation=generation)


@pytest.fixture
def hands():
    return Hands()


@pytest.fixture
def lease(hands):
    lease = Lease(3.0, hands)
    lease.renew(lease.now())
    return lease


@pytest.fixture
def word(tmp_path):
    with CommitWord(tmp_path / "word") as word:
        yield word


@pytest.fixture
def slot(word, lease):
    slot = ModelSlot(word, lease)
    slot.stage(engine(1))
    slot.raise_floor(1)
    slot.engine_for([])
    return slot


def test_a_lease_runs_for_its_seconds(lease, hands):
    term = lease.term
    hands.advance(2.9)
    assert lease.covers(term)
    hands.advance(0.2)
    assert not lease.covers(term)
    assert not lease.is_running()


def test_no_lease_before_the_first_renewal(hands):
    assert not Lease(3.0, hands).is_running()


def test_renewal_counts_from_before_it_was_written(lease, hands):
    at = lease.now()
    hands.advance(2.0)  # the database was slow
    lease.renew(at)
    hands.advance(1.5)
    assert not lease.is_running()


def test_timely_renewal_keeps_the_term(lease, hands):
    term = lease.term
    for _ in range(5):
        hands.advance(2.0)
        lease.renew(lease.now())
    assert lease.covers(term)


@pytest.mark.parametrize("clocks", [("steady",), ("wall",), ("steady", "wall")])
def test_a_lapse_ends_the_term_for_ever_on_either_clock(lease, hands, clocks):
    term = lease.term
    for name in clocks:
        setattr(hands, name, getattr(hands, name) + 10)
    assert not lease.covers(term)
    lease.renew(lease.now())
    assert lease.is_running()
    assert not lease.covers(term)


def test_a_lapse_while_the_renewal_is_written_ends_the_term(lease, hands):
    term = lease.term
    hands.advance(2.9)
    at = lease.now()
    hands.advance(0.2)  # others saw the old lease run out before the new one was durable
    lease.renew(at)
    assert lease.is_running()
    assert not lease.covers(term)


def test_without_a_model_nothing_boards(word, lease):
    slot = ModelSlot(word, lease)
    with pytest.raises(TryLaterError, match="train one first"):
        slot.engine_for([InFlight()])
    assert "train one first" in slot.why_not_ready()


def test_the_staged_engine_answers_from_the_word_on_and_not_before(slot, word):
    slot.stage(engine(2))
    assert slot.engine_for([]).generation == 1
    word.advance(2)
    assert slot.engine_for([]).generation == 2
    assert slot.staged is None


def test_the_staged_engine_answers_from_the_database_on_too(slot):
    slot.stage(engine(2))
    slot.raise_floor(2)
    assert slot.engine_for([]).generation == 2


def test_a_committed_generation_that_is_not_loaded_stops_the_process(slot, word):
    word.advance(2)
    with pytest.raises(TryLaterError, match="generation 2 is active but not loaded"):
        slot.engine_for([InFlight()])
    assert "not loaded" in slot.why_not_ready()


def test_a_staged_engine_that_was_never_committed_does_not_answer(slot, word):
    slot.stage(engine(2))  # aborted; 3 was committed instead
    word.advance(3)
    with pytest.raises(TryLaterError):
        slot.engine_for([])
    slot.stage(engine(3))
    assert slot.engine_for([]).generation == 3


def test_the_floor_never_sinks(slot):
    slot.stage(engine(2))
    slot.raise_floor(2)
    slot.engine_for([])
    slot.raise_floor(1)
    assert slot.committed == 2


def test_a_fenced_process_lets_nothing_board(slot, hands):
    hands.advance(3.1)
    with pytest.raises(TryLaterError, match="lease"):
        slot.engine_for([InFlight()])
    assert "lease" in slot.why_not_ready()


def test_a_response_computed_before_a_freeze_does_not_leave_after_it(slot, lease, hands):
    before, after = InFlight(), InFlight()
    slot.engine_for([before])
    hands.advance(60)
    assert not slot.may_send(before)
    lease.renew(lease.now())  # the heartbeat wakes first
    assert not slot.may_send(before)
    slot.engine_for([after])
    assert slot.may_send(after)


def test_a_request_without_a_prediction_may_always_leave(slot, hands):
    hands.advance(60)
    assert slot.may_send(InFlight())


def test_acknowledgement_waits_for_the_last_older_response(slot, word):
    old, new = [InFlight(), InFlight()], [InFlight()]
    slot.engine_for(old)
    slot.stage(engine(2))
    word.advance(2)
    assert not slot.has_finished_older_than(2)
    slot.engine_for(new)
    assert not slot.has_finished_older_than(2)
    slot.finish(old[0])
    slot.finish(old[0])  # leaving twice counts once
    assert not slot.has_finished_older_than(2)
    slot.finish(old[1])
    assert slot.has_finished_older_than(2)
    slot.finish(new[0])
    assert slot.has_finished_older_than(2)


def test_a_request_given_up_before_its_batch_is_not_waited_for(slot):
    given_up = InFlight()
    slot.finish(given_up)
    slot.engine_for([given_up])
    slot.stage(engine(2))
    slot.raise_floor(2)
    slot.swap_if_committed()
    assert slot.has_finished_older_than(2)


def test_an_idle_process_swaps_without_a_batch(slot, word):
    slot.stage(engine(2))
    slot.swap_if_committed()
    assert slot.current.generation == 1
    word.advance(2)
    slot.swap_if_committed()
    assert slot.current.generation == 2


@given(st.lists(st.sampled_from(["begin", "finish", "stage", "commit"]), max_size=60))
def test_acknowledging_is_safe_in_every_order(tmp_path_factory, actions):
    """Whatever happens, once a generation may be acknowledged no older response is in flight or will be made."""
    hands = Hands()
    lease = Lease(1e9, hands)
    lease.renew(lease.now())
    with CommitWord(tmp_path_factory.mktemp("word") / "word") as word:
        slot = ModelSlot(word, lease)
        slot.stage(engine(1))
        word.advance(1)
        inside: list[InFlight] = []
        staged, acknowledged = 1, 0
        for action in actions:
            if action == "begin":
                inside.append(InFlight())
                assert slot.engine_for([inside[-1]]).generation >= acknowledged
            elif action == "finish" and inside:
                slot.finish(inside.pop(0))
            elif action == "stage" and staged == word.read() and slot.staged is None:
                staged += 1
                slot.stage(engine(staged))
            elif action == "commit":
                word.advance(staged)
            current = slot.current.generation if slot.current else 0
            if current and slot.has_finished_older_than(current):
                acknowledged = current
            assert all(request.generation >= acknowledged for request in inside)


def test_counting_is_right_under_threads(slot):
    def pass_through() -> None:
        for _ in range(300):
            requests = [InFlight() for _ in range(4)]
            slot.engine_for(requests)
            for request in requests:
                slot.finish(request)

    at_once(*[pass_through] * 4)
    slot.stage(engine(2))
    slot.raise_floor(2)
    slot.swap_if_committed()
    assert slot.has_finished_older_than(2)


class Others:
    """What other processes have in flight: older answers that are sent after so many looks."""

    def __init__(self) -> None:
        self.n_looks_left = 0
        self.written: list[int] = []

    def write(self, generation: int) -> None:
        self.written.append(generation)

    def others_have_older_than(self, _: int) -> bool:
        self.n_looks_left -= 1
        return self.n_looks_left >= 0


@pytest.fixture
def others():
    return Others()


@pytest.fixture
def shared(word, lease, others):
    slot = ModelSlot(word, lease, others)
    slot.stage(engine(1))
    slot.raise_floor(1)
    return slot


def test_what_is_on_its_way_is_written_down_before_the_engine_is_chosen_and_until_it_left(shared, others) -> None:
    shared.engine_for([])
    requests = [InFlight(), InFlight()]
    shared.engine_for(requests)
    assert others.written[-2:] == [1, 1]
    shared.stage(engine(2))
    shared.raise_floor(2)
    later = InFlight()
    others.written.clear()
    shared.engine_for([later])
    assert others.written == [1, 1]  # the two of before
    for request in requests:
        shared.finish(request)
    assert others.written[-1] == 2
    shared.finish(later)
    assert others.written[-1] == 0


def test_only_the_first_answers_of_a_generation_wait_for_older_ones(shared, others) -> None:
    others.n_looks_left = 3
    shared.wait_for_older(1)
    assert others.n_looks_left == -1
    others.n_looks_left = 3
    shared.wait_for_older(1)
    assert others.n_looks_left == 3
    shared.wait_for_older(2)
    assert others.n_looks_left == -1


def test_the_wait_for_older_answers_ends(shared, others) -> None:
    others.n_looks_left = 10**9
    shared.wait_for_older(1)
    assert others.n_looks_left > 0


def test_a_request_that_boards_twice_counts_for_the_later_generation_alone(slot):
    """Its first batch may not have answered it: the model took images of another size."""
    request = InFlight()
    slot.engine_for([request])
    slot.stage(engine(2))
    slot.raise_floor(2)
    slot.engine_for([request])
    assert slot.has_finished_older_than(2)
    slot.stage(engine(3))
    slot.raise_floor(3)
    slot.engine_for([])
    assert not slot.has_finished_older_than(3)
    slot.finish(request)
    assert slot.has_finished_older_than(3)
