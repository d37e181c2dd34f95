from __future__ import annotations

import pytest
from sqlmodel import select

from service.context import LINE
from service.errors import ConflictError, NotFoundError
from service.requests import data_folder
from service.requests.decisions import approve
from service.requests.doubts import is_confirmed
from service.requests.intake import LEGAL_HOLD, file_requests
from service.requests.runs import (
    advance,
    get_run,
    give_up,
    load_run,
    must_be_resumed,
    note,
    release_line,
    requests_of,
    resume,
    workflow_id,
)
from service.requests.schemas import Decision, Filing
from service.store.engine import reading, session
from service.store.tables import OpenLine, RequestEvent
from service.worker import claim
from tests.service import tiny


@pytest.fixture
def run_id(context, clock):
    tiny.file(context, "s31", "s4")
    clock.advance(seconds=context.settings.hold_seconds)
    return claim(context, tiny.POLICY)


def file_on_hold(context, *user_ids: str) -> list[str]:
    filing = Filing(user_ids=list(user_ids), legal_hold=True)
    filed = file_requests(context, tiny.CLIENT, filing, n_subjects=lambda: 1000, most_open=1000)
    return [receipt.id for receipt in filed.requests]


def moves(context) -> list[str]:
    with reading(context.engine) as s:
        return [event.to_state for event in s.exec(select(RequestEvent).order_by(RequestEvent.id))]


def states_of(context) -> set[str]:
    return {request.state for request in tiny.requests(context)}


def test_a_run_that_is_not_there(context):
    with reading(context.engine) as s, pytest.raises(NotFoundError, match="Expected run 'nothing'"):
        get_run(s, "nothing")


def test_advancing_twice_moves_once(context, run_id):
    note(context, run_id, "reference models 3/4")
    assert load_run(context, run_id).stage_note == "reference models 3/4"
    advance(context, run_id, "auditing")
    before = moves(context)
    advance(context, run_id, "auditing")
    assert moves(context) == before
    assert before.count("auditing") == 2  # one a request
    run = load_run(context, run_id)
    assert (run.stage, run.stage_note) == ("auditing", "")


def test_a_step_that_the_states_do_not_allow_moves_nobody(context, run_id):
    with pytest.raises(ConflictError):
        advance(context, run_id, "completed")
    assert states_of(context) == {"unlearning"}
    assert load_run(context, run_id).stage == "unlearning"


def test_followers_advance_with_their_leader_but_are_not_of_the_run(context, run_id):
    follower = tiny.file(context, "s31")[0]
    advance(context, run_id, "auditing")
    assert tiny.request_of(context, follower).state == "auditing"
    with reading(context.engine) as s:
        assert len(requests_of(s, run_id)) == 2


def test_giving_up_frees_the_line_and_keeps_the_deadlines(context, run_id, clock):
    due = [request.due_at for request in tiny.requests(context)]
    give_up(context, run_id, "No step of the ladder passed the audit.")
    run = load_run(context, run_id)
    assert (run.stage, run.finished_at) == ("needs_attention", clock())
    assert {request.attention_reason for request in tiny.requests(context)} == {run.stage_note}
    assert [request.due_at for request in tiny.requests(context)] == due
    with reading(context.engine) as s:
        assert s.get(OpenLine, LINE) is None


def test_giving_up_twice_changes_nothing(context, run_id, clock):
    give_up(context, run_id, "first")
    before, run = moves(context), load_run(context, run_id)
    clock.advance(seconds=1)
    give_up(context, run_id, "second")
    assert moves(context) == before
    assert load_run(context, run_id) == run


def test_giving_up_leaves_the_line_to_a_later_run(context, run_id, clock):
    give_up(context, run_id, "first")
    tiny.file(context, "s7")
    clock.advance(seconds=context.settings.hold_seconds)
    later = claim(context, tiny.POLICY)
    give_up(context, run_id, "again, after a kill")
    with reading(context.engine) as s:
        assert s.get_one(OpenLine, LINE).run_id == later


@pytest.mark.parametrize("reason", ["No step of the ladder passed the audit.", data_folder.MISSING])
def test_a_legal_hold_that_came_during_a_run_stops_its_person_when_the_run_gives_up(context, run_id, clock, reason):
    """It could not stop the run; but nothing was destroyed, and no approval or mounted volume may start another."""
    (hold,) = file_on_hold(context, "s31")
    assert tiny.request_of(context, hold).state == "unlearning"
    give_up(context, run_id, reason)
    waiting = {request.user_id: request for request in tiny.requests(context) if request.id != hold}
    assert (waiting["s31"].attention_reason, waiting["s31"].legal_hold) == (LEGAL_HOLD, True)
    assert (waiting["s4"].attention_reason, waiting["s4"].legal_hold) == (reason, False)
    data_folder.release(context)
    clock.advance(seconds=1)
    claim(context, tiny.POLICY)
    assert {tiny.request_of(context, each).state for each in (hold, waiting["s31"].id)} == {"needs_attention"}
    with reading(context.engine) as s:
        assert not is_confirmed(s, waiting["s31"].id, reason)
    approve(context, tiny.CLIENT, waiting["s31"].id, Decision(reason="The hold is over."))
    assert {tiny.request_of(context, each).legal_hold for each in (hold, waiting["s31"].id)} == {False}


def test_a_run_that_stopped_in_its_purge_keeps_the_line_and_is_resumed_with_all_its_requests(context, run_id, clock):
    advance(context, run_id, "purging")
    assert workflow_id(load_run(context, run_id)) == run_id
    with session(context.engine) as s:
        run = get_run(s, run_id)
        run.purge = {"began_at": clock().isoformat()}
        s.add(run)
        s.commit()
        assert not must_be_resumed(s, run_id)
    give_up(context, run_id, "The storage refused.")
    run = load_run(context, run_id)
    assert (run.stage, run.stage_note, run.finished_at) == ("needs_attention", "The storage refused.", None)
    for number in (1, 2):
        with session(context.engine) as s:
            assert s.get_one(OpenLine, LINE).run_id == run_id
            assert must_be_resumed(s, run_id)
            resume(s, run_id, now=clock.advance(seconds=1), note="It works again.", legal_hold=False)
            s.commit()
            assert not must_be_resumed(s, run_id)
        run = load_run(context, run_id)
        assert (run.stage, run.stage_note, run.updated_at) == ("purging", "", clock())
        assert workflow_id(run) == f"{run_id}.{number}"
        assert states_of(context) == {"purging"}
        with reading(context.engine) as s:
            assert {event.note for event in s.exec(select(RequestEvent).where(RequestEvent.at == clock()))} == {
                "It works again."
            }
        give_up(context, run_id, "It refused again.")


def test_a_run_that_ended_or_destroyed_nothing_is_not_resumed(context, run_id):
    give_up(context, run_id, "No step of the ladder passed the audit.")
    with reading(context.engine) as s:
        assert not must_be_resumed(s, run_id)


def test_a_run_releases_no_line_but_its_own(context, run_id):
    with session(context.engine) as s:
        release_line(s, "another")
        assert s.get_one(OpenLine, LINE).run_id == run_id
        for _ in range(2):
            release_line(s, run_id)
            s.flush()
            assert s.get(OpenLine, LINE) is None
