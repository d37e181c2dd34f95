from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace

import psutil
import pytest
from sqlmodel import col, delete

from service import planning, rebuilding
from service.bank_overview import overview
from service.bank_store import BankStore
from service.blocks import forget_from_blocks
from service.completion import complete, purge
from service.db import session
from service.rebuilding import Rebuilder, publish, rebuild, survey
from service.tables import LearnedSubject
from service.trials import release_processes
from tests.service import tiny
from unlearning.faces import remove_subjects

POLICY = replace(tiny.POLICY, staleness_max=0.05)


def look(context, policy=POLICY):
    publish(context, survey(context, policy))
    return {block.block: block for block in overview(context).blocks}


def block_of(context, person):
    tag = context.keyring.block_hash(person)
    (found,) = (block for block in survey(context, POLICY) if tag in block.plan.tags)
    return found.row.block


def erase(context, *people):
    """What a run does to rosters, data and banks."""
    hashes = [context.keyring.subject_hash(person) for person in people]
    with session(context.engine) as s:
        s.execute(delete(LearnedSubject).where(col(LearnedSubject.subject_hash).in_(hashes)))
        s.commit()
    release_processes()
    remove_subjects(context.settings.data_folder, people)
    tags = [context.keyring.block_hash(person) for person in people]
    for tag in tags:
        BankStore(context.settings.banks_folder).drop_subject(tag)
    forget_from_blocks(context.settings, tags)


@pytest.fixture
def built(tiny_context):
    """Two people of one block that has a bank; the others have none."""
    pair = tiny.same_block(tiny_context)
    tiny.build(tiny_context, tiny.plan_for(tiny_context, pair[0]))
    return pair


def test_what_each_block_has(tiny_context, built):
    others = [person for person in tiny.people(tiny_context) if person not in built]
    block = block_of(tiny_context, built[0])
    seen = look(tiny_context)
    assert len(seen) == 20
    assert (seen[block].state, seen[block].n_models, seen[block].n_people) == ("fresh", 4, 2)
    assert {other.state for name, other in seen.items() if name != block} == {"missing"}
    erase(tiny_context, others[0])
    seen = look(tiny_context)[block]
    assert (seen.state, seen.n_gone, seen.n_learned, seen.staleness, seen.n_next) == ("stale", 1, 38, 1 / 38, 0)
    tiny.file(tiny_context, others[1])  # waits: a bank built now is trained without this person too
    seen = look(tiny_context)[block]
    assert (seen.state, seen.n_gone, seen.staleness) == ("outdated", 2, 2 / 38)


def test_stale_banks_are_built_anew_and_replaced(tiny_context, built):
    others = [person for person in tiny.people(tiny_context) if person not in built]
    stale = tiny.plan_for(tiny_context, built[0]).key
    erase(tiny_context, others[0])
    told = []
    n_built = rebuild(
        tiny_context, POLICY, missing_too=False, on_block=lambda *which: lambda *done: told.append((*which[1:], *done))
    )
    assert n_built == 1
    assert told == [(1, 1, n, 4) for n in range(5)]
    block = block_of(tiny_context, built[0])
    assert look(tiny_context)[block].state == "fresh"
    (status,) = BankStore(tiny_context.settings.banks_folder).status(now=tiny_context.now())
    assert status.key != stale
    assert rebuild(tiny_context, POLICY, missing_too=False) == 0


def test_progress_is_seen_in_the_database(tiny_context, built):
    others = [person for person in tiny.people(tiny_context) if person not in built]
    erase(tiny_context, others[0])
    seen = []
    block = block_of(tiny_context, built[0])

    def watch(*_):
        def told(*_):
            (row,) = (row for row in overview(tiny_context).blocks if row.block == block)
            seen.append((row.state, row.n_models, row.n_next))

        return told

    rebuild(tiny_context, POLICY, missing_too=False, on_block=watch)
    assert seen == [("stale", 4, n) for n in range(5)]


def test_a_stale_bank_judges_and_the_certificate_says_so(tiny_context, built):
    others = [person for person in tiny.people(tiny_context) if person not in built]
    first = tiny.deploy_run(tiny_context, others[0])
    purge(tiny_context, first)
    complete(tiny_context, tiny.POLICY, first)
    run_id = tiny.claim_run(tiny_context, built[0], policy=POLICY)
    plan = planning.plan(tiny_context, POLICY, run_id)
    assert plan.bank["staleness"] == {"n_learned": 38, "n_learned_gone": 1, "n_tested": 5, "n_tested_gone": 0}
    told = []
    planning.gather(tiny_context, POLICY, run_id, lambda *done: told.append(done))
    assert told == [(4, 4)]  # nothing was trained
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN, POLICY)
    attempt = tiny.attempts(tiny_context)[-1]
    (check,) = (check for check in attempt.figures["checks"] if check["name"] == "reference_staleness")
    assert check["value"] == pytest.approx(1 / 38)
    assert check["bar"] == 0.05
    assert check["passed"] is True
    assert "Of 38 people the references learned from 1 were erased since" in check["sentence"]
    report = (tiny_context.settings.reports_folder / run_id / "step-1.html").read_text()
    assert "Of 38 people the references learned from 1 were erased since" in report


def test_a_stale_bank_that_was_damaged_after_the_plan_is_replaced_by_an_exact_one(tiny_context, built):
    others = [person for person in tiny.people(tiny_context) if person not in built]
    erase(tiny_context, others[0])
    run_id = tiny.claim_run(tiny_context, built[0], policy=POLICY)
    stale = planning.plan(tiny_context, POLICY, run_id)
    path = next(tiny_context.settings.banks_folder.rglob("2.row"))
    path.write_bytes(path.read_bytes()[:-1])
    told = []
    planning.gather(tiny_context, POLICY, run_id, lambda *done: told.append(done))
    assert told[0] == (0, 4)
    plan = planning.load(tiny_context, run_id)
    assert plan.bank["key"] != stale.bank["key"]
    assert plan.bank["staleness"]["n_learned_gone"] == 0
    assert others[0] not in planning.faces_at(tiny_context, plan).subjects[plan.bank["retain"]]


def test_a_bank_never_judges_a_person_its_models_learned_from(tiny_context, built):
    """Were blocks drawn anew, a bank of the old ones could fit all but for this."""
    others = [person for person in tiny.people(tiny_context) if person not in built]
    plan = tiny.plan_for(tiny_context, others[0], staleness_max=1.0)
    assert plan.staleness.share == 0
    assert tiny_context.keyring.block_hash(others[0]) not in plan.learned


@pytest.fixture
def sleeper(monkeypatch, tiny_context):
    """A rebuilder whose child sleeps with a child of its own."""
    command = ["sh", "-c", "sleep 60 & sleep 60"]
    started = []

    def start(_settings):
        import subprocess

        child = subprocess.Popen(command, start_new_session=True)
        started.append(child)
        return child

    monkeypatch.setattr(rebuilding, "_start", start)
    return started


def test_the_child_runs_while_the_line_is_idle_and_yields_at_once(tiny_context, built, sleeper, clock):
    seconds = [0.0]
    with Rebuilder(tiny_context, clock=lambda: seconds[0]) as rebuilder:
        rebuilder.tend(busy=True)
        assert sleeper == []
        rebuilder.tend(busy=False)
        rebuilder.tend(busy=False)
        (child,) = sleeper
        while len(family := [psutil.Process(child.pid), *psutil.Process(child.pid).children()]) < 3:
            time.sleep(0.01)
        started = time.perf_counter()
        rebuilder.tend(busy=True)
        assert time.perf_counter() - started < 1
        assert child.returncode == -signal.SIGKILL
        _, alive = psutil.wait_procs(family, timeout=5)
        assert not [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        rebuilder.tend(busy=False)  # after a run it looks again
        assert len(sleeper) == 2
    assert sleeper[1].returncode == -signal.SIGKILL


def test_a_child_that_ended_is_not_started_again_at_once(tiny_context, built, sleeper):
    seconds = [0.0]
    with Rebuilder(tiny_context, clock=lambda: seconds[0]) as rebuilder:
        rebuilder.tend(busy=False)
        os.killpg(sleeper[0].pid, signal.SIGKILL)
        sleeper[0].wait()
        rebuilder.tend(busy=False)
        rebuilder.tend(busy=False)
        assert len(sleeper) == 1
        seconds[0] += rebuilding.LOOK_AGAIN_SECONDS
        rebuilder.tend(busy=False)
        assert len(sleeper) == 2


@pytest.mark.parametrize(("setting", "n_started"), [("off", 0), ("known", 0), ("all", 1)])
def test_nothing_is_started_where_nothing_is_to_be_done(tiny_context, sleeper, setting, n_started):
    context = replace(tiny_context, settings=tiny_context.settings.model_copy(update={"rebuild_references": setting}))
    with Rebuilder(context) as rebuilder:
        rebuilder.tend(busy=False)
        assert len(sleeper) == n_started


def test_the_real_child_builds_what_is_stale(tiny_context, built):
    others = [person for person in tiny.people(tiny_context) if person not in built]
    erase(tiny_context, others[0])
    stale = BankStore(tiny_context.settings.banks_folder).status(now=tiny_context.now())[0].key
    policy = tiny_context.settings.home / "policy.json"
    policy.write_text(json.dumps(POLICY.to_dict()))
    context = replace(tiny_context, settings=tiny_context.settings.model_copy(update={"policy": str(policy)}))
    with Rebuilder(context) as rebuilder:
        deadline = time.monotonic() + 240  # it has the lowest priority
        while time.monotonic() < deadline:
            rebuilder.tend(busy=False)
            if [block.state for block in overview(tiny_context).blocks if block.bank] == ["fresh"]:
                break
            time.sleep(0.1)
        else:
            pytest.fail("The child built nothing.")
    (status,) = BankStore(tiny_context.settings.banks_folder).status(now=tiny_context.now())
    assert status.key != stale
