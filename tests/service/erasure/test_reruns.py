"""A run's candidate made a second time, and what happens if it comes out otherwise."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from sqlmodel import col, select

from audit.proof.certificate import verify
from audit.proof.reruns import omissions
from service.erasure import reruns
from service.erasure.workspace import RunFolder
from service.errors import ConflictError, NotFoundError
from service.store.engine import session
from service.store.tables import Attempt
from tests.service import tiny


@pytest.fixture
def every_run(tiny_context):
    """A context in which every run is made twice."""
    return replace(tiny_context, settings=tiny_context.settings.model_copy(update={"rerun_share": 1.0}))


@pytest.fixture
def judged(every_run):
    """A run with a candidate that passed."""
    run_id = tiny.plan_run(every_run, tiny.people(every_run)[0])
    assert tiny.try_step(every_run, run_id, tiny.RETRAIN)
    return run_id


def logged(context, kind):
    return [json.loads(leaf.entry) for leaf in tiny.log_entries(context) if leaf.kind == kind]


def with_other_seed(context, run_id):
    """Somebody changed what the candidate was made with."""
    with session(context.engine) as s:
        attempt = s.exec(select(Attempt).where(col(Attempt.run_id) == run_id)).one()
        attempt.seed += 1
        s.add(attempt)
        s.commit()


def test_the_opening_entry_announces_share_and_key(every_run, judged):
    (entry,) = logged(every_run, "policy")
    assert entry["rerun_share"] == 1.0
    assert len(entry["rerun_key_sha256"]) == 64
    assert every_run.keyring.rerun_key.hex() not in json.dumps(entry)


def test_equal_weights_stand_in_log_and_certificate(every_run, judged):
    assert reruns.carry_out(tiny.workspace(every_run, judged)) is None
    assert reruns.carry_out(tiny.workspace(every_run, judged)) is None  # as after a kill
    (attempt,) = tiny.attempts(every_run)
    (entry,) = logged(every_run, "rerun")
    assert entry["weights"] == entry["again"] == attempt.candidate_digest
    assert entry["asked_by"] == "policy"
    assert not list(RunFolder(every_run.settings, judged).path.glob("again-*"))
    tiny.finish(every_run, judged)
    record = tiny.certificates(every_run)[-1]
    result = verify(record.envelope)
    assert result.valid, result.checks
    assert result.statement["predicate"]["rerun"] == {
        "chosen": True, "share": 1.0, "weights_digest": attempt.candidate_digest,
        "key_sha256": logged(every_run, "policy")[0]["rerun_key_sha256"],
    }  # fmt: skip
    found = omissions([leaf.entry for leaf in tiny.log_entries(every_run)], every_run.keyring.rerun_key)
    assert (found.chosen, found.omitted) == ((judged,), ())


def test_other_weights_stop_the_run(every_run, judged):
    with_other_seed(every_run, judged)
    for _ in range(2):
        assert "other weights; nothing was deployed" in reruns.carry_out(tiny.workspace(every_run, judged))
    (entry,) = logged(every_run, "rerun")
    assert entry["weights"] != entry["again"]


def test_a_run_that_is_not_chosen_is_made_once(tiny_context):
    context = replace(tiny_context, settings=tiny_context.settings.model_copy(update={"rerun_share": 0.0}))
    run_id = tiny.plan_run(context, tiny.people(context)[0])
    assert tiny.try_step(context, run_id, tiny.RETRAIN)
    assert reruns.carry_out(tiny.workspace(context, run_id)) is None
    assert logged(context, "rerun") == []
    assert RunFolder(context.settings, run_id).read("rerun")["chosen"] is False


def test_the_share_logged_before_the_run_counts(every_run, judged):
    """Who changes the setting while a run is open changes nothing for it."""
    lenient = replace(every_run, settings=every_run.settings.model_copy(update={"rerun_share": 0.0}))
    assert reruns.carry_out(tiny.workspace(lenient, judged)) is None
    assert len(logged(every_run, "rerun")) == 1


def test_an_exchanged_key_spares_no_run(tiny_context):
    context = replace(tiny_context, settings=tiny_context.settings.model_copy(update={"rerun_share": 1e-9}))
    run_id = tiny.plan_run(context, tiny.people(context)[0])
    assert tiny.try_step(context, run_id, tiny.RETRAIN)
    assert (
        reruns.carry_out(
            tiny.workspace(replace(context, keyring=replace(context.keyring, rerun_key=b"n" * 32)), run_id)
        )
        is None
    )
    assert len(logged(context, "rerun")) == 1


def test_by_hand_while_the_run_is_open(every_run, judged):
    first, again = reruns.repeat(every_run, judged)
    assert first == again
    assert logged(every_run, "rerun")[0]["asked_by"] == "operator"
    with_other_seed(every_run, judged)
    first, again = reruns.repeat(every_run, judged)
    assert first != again


def test_by_hand_it_says_what_cannot_be_done(every_run):
    with pytest.raises(NotFoundError):
        reruns.repeat(every_run, "no-such-run")
    run_id = tiny.plan_run(every_run, tiny.people(every_run)[0])
    with pytest.raises(ConflictError, match="none yet"):
        reruns.repeat(every_run, run_id)
    assert tiny.try_step(every_run, run_id, tiny.RETRAIN)
    tiny.finish(every_run, run_id)
    with pytest.raises(ConflictError, match="destroyed, so it cannot be made again"):
        reruns.repeat(every_run, run_id)
