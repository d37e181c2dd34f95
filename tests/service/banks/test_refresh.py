from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from sqlmodel import col, delete

from service.banks import refresh
from service.banks.blocks import forget_from_blocks
from service.banks.file_format import MARGIN
from service.banks.overview import overview
from service.banks.refresh import Rebuilder, publish, rebuild, survey
from service.banks.store import BankKey, BankStore, ReferenceRow
from service.erasure.candidates import unlearn
from service.erasure.completion import complete, purge, tidy
from service.erasure.references import bank_plan, gather
from service.erasure.workspace import RunFolder
from service.launch import environment
from service.store.engine import session
from service.store.tables import LearnedSubject
from service.training.jobs import release_processes
from tests.processes import is_alive
from tests.service import tiny
from tests.waiting import PATIENCE_SECONDS, line_of, wait_until
from unlearning.faces import remove_subjects

ROOT = Path(__file__).parents[3]
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


def test_a_look_that_finds_nothing_to_train_loads_no_torch(tiny_context, built, tmp_path):
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(POLICY.to_dict()))
    settings = tiny_context.settings.model_copy(update={"policy": str(policy)})
    program = (
        "import sys; from service.cli import app; "
        "app(['references', 'refresh'], standalone_mode=False); sys.exit('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env=environment(settings), capture_output=True, text=True, check=False, cwd=ROOT,
        timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "Every bank may judge" in done.stdout


def test_a_bank_from_before_banks_held_views_goes_when_there_is_one_that_does(tiny_context, built):
    store, plan = BankStore(tiny_context.settings.banks_folder), tiny.plan_for(tiny_context, built[0])
    old = replace(plan.key, statistic=MARGIN)
    store.begin(old, example_ids=plan.example_ids, subject_tags=plan.tags, n_wanted=1, now=tiny_context.now())
    store.add(old, ReferenceRow(0, plan.example_ids, np.zeros(len(plan.tags), np.float32), 0.9, 0.8, 1.0))
    assert store.find(old, n_models=1) is not None
    rebuild(tiny_context, POLICY, missing_too=False)
    assert [status.key for status in store.status(now=tiny_context.now())] == [plan.key]


def test_a_stale_bank_that_may_judge_after_one_more_erasure_is_left_as_it_is(tiny_context, built):
    person = next(each for each in tiny.people(tiny_context) if each not in built)
    erase(tiny_context, person)
    lenient = replace(POLICY, staleness_max=2 / 38)  # the bank learned from 38 people, of whom one is gone
    assert rebuild(tiny_context, lenient, missing_too=False) == 0
    assert look(tiny_context, lenient)[block_of(tiny_context, built[0])].state == "stale"
    assert rebuild(tiny_context, replace(lenient, staleness_max=1.9 / 38), missing_too=False) == 1


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


def test_a_stale_bank_judges_and_the_certificate_says_so(tiny_context, built, monkeypatch):
    others = [person for person in tiny.people(tiny_context) if person not in built]
    first = tiny.deploy_run(tiny_context, others[0])
    purge(tiny.workspace(tiny_context, first))
    complete(tiny.workspace(tiny_context, first))
    run_id = tiny.claim_run(tiny_context, built[0], policy=POLICY)
    work = tiny.workspace(tiny_context, run_id, POLICY)
    assert work.make_plan().bank["staleness"] == {
        "n_learned": 38,
        "n_learned_gone": 1,
        "n_tested": 5,
        "n_tested_gone": 0,
    }
    told = tiny.listen(monkeypatch)
    gather(work)
    assert told == ["reference models 4/4"]  # nothing was trained
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN, POLICY)
    attempt = tiny.attempts(tiny_context)[-1]
    (check,) = (check for check in attempt.figures["checks"] if check["name"] == "reference_staleness")
    assert check["value"] == pytest.approx(1 / 38)
    assert check["bar"] == 0.05
    assert check["passed"] is True
    assert "Subjects erased since, or waiting for erasure: 1 of the 38" in check["sentence"]
    report = (tiny_context.settings.reports_folder / run_id / "step-1.html").read_text()
    assert "Subjects erased since, or waiting for erasure: 1 of the 38" in report


def test_a_stale_bank_that_was_damaged_after_the_plan_is_replaced_by_an_exact_one(tiny_context, built, monkeypatch):
    others = [person for person in tiny.people(tiny_context) if person not in built]
    erase(tiny_context, others[0])
    run_id = tiny.claim_run(tiny_context, built[0], policy=POLICY)
    work = tiny.workspace(tiny_context, run_id, POLICY)
    stale = work.make_plan()
    (path,) = (tiny_context.settings.banks_folder / BankKey(**stale.bank["key"]).digest).rglob("2.row")
    path.write_bytes(path.read_bytes()[:-1])
    told = tiny.listen(monkeypatch)
    gather(work)
    assert told[0] == "reference models 0/4"
    plan = tiny.workspace(tiny_context, run_id).plan
    assert work.plan == plan  # what the step goes on with is what later steps read
    assert plan.bank["key"] != stale.bank["key"]
    assert plan.bank["staleness"]["n_learned_gone"] == 0
    assert others[0] not in work.faces.subjects[plan.bank["retain"]]


@pytest.fixture
def judged(tiny_context, built):
    """A run whose plan names a stale bank, and that bank's key."""
    others = [person for person in tiny.people(tiny_context) if person not in built]
    erase(tiny_context, others[0])
    run_id = tiny.claim_run(tiny_context, built[0], policy=POLICY)
    work = tiny.workspace(tiny_context, run_id, POLICY)
    assert work.make_plan().bank["staleness"]["n_learned_gone"] == 1
    return run_id, bank_plan(work).key


def kept(context):
    return {status.key for status in BankStore(context.settings.banks_folder).status(now=context.now())}


def test_a_bank_that_an_open_run_names_stays_until_the_run_ended(tiny_context, judged):
    run_id, stale = judged
    assert rebuild(tiny_context, POLICY, missing_too=False) == 1
    assert kept(tiny_context) > {stale}
    assert tiny.try_step(tiny_context, run_id, tiny.RETRAIN, POLICY)
    assert bank_plan(tiny.workspace(tiny_context, run_id)).key == stale
    tiny.finish(tiny_context, run_id)
    tidy(tiny.workspace(tiny_context, run_id))
    assert kept(tiny_context) > {stale}
    assert rebuild(tiny_context, POLICY, missing_too=False) == 0
    assert len(kept(tiny_context) - {stale}) == len(kept(tiny_context)) == 1


@pytest.mark.parametrize("step", [tiny.FINETUNE, tiny.RETRAIN])
def test_a_run_whose_stale_bank_is_gone_all_the_same_plans_again_and_makes_the_candidate_again(
    tiny_context, judged, step
):
    run_id, stale = judged
    gather(tiny.workspace(tiny_context, run_id, POLICY))
    unlearn(tiny.workspace(tiny_context, run_id, POLICY), step)
    folder = RunFolder(tiny_context.settings, run_id)
    first = folder.weights(step).stat().st_ino
    tiny.file(tiny_context, tiny.people(tiny_context)[-1])  # from now on models are trained without this person, too
    BankStore(tiny_context.settings.banks_folder).discard(stale)
    assert tiny.try_step(tiny_context, run_id, step, POLICY) == (step == tiny.RETRAIN)
    work = tiny.workspace(tiny_context, run_id)
    assert bank_plan(work).key != stale
    assert work.plan.bank["staleness"]["n_learned_gone"] == 0
    assert folder.weights(step).stat().st_ino != first
    assert tiny.people(tiny_context)[-1] not in work.faces.subjects[work.plan.retain]
    assert len(tiny.attempts(tiny_context)) == 1


def test_a_bank_never_judges_a_person_its_models_learned_from(tiny_context, built):
    """Were blocks drawn anew, a bank of the old ones could fit all but for this."""
    others = [person for person in tiny.people(tiny_context) if person not in built]
    plan = tiny.plan_for(tiny_context, others[0], staleness_max=1.0)
    assert plan.staleness.share == 0
    assert tiny_context.keyring.block_hash(others[0]) not in plan.learned


@pytest.fixture
def sleeper(monkeypatch, tiny_context):
    """A rebuilder whose child sleeps: when it is started and stopped, not what it does."""
    started = []

    def start(_settings):
        child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        started.append(child)
        return child

    monkeypatch.setattr(refresh, "_start", start)
    return started


def test_the_child_runs_while_the_line_is_idle_and_is_stopped_for_a_run(tiny_context, built, sleeper):
    with Rebuilder(tiny_context, clock=lambda: 0.0) as rebuilder:
        rebuilder.tend(busy=True)
        assert sleeper == []
        rebuilder.tend(busy=False)
        rebuilder.tend(busy=False)
        assert len(sleeper) == 1
        assert sleeper[0].poll() is None
        rebuilder.tend(busy=True)
        assert sleeper[0].returncode == -signal.SIGKILL
        rebuilder.tend(busy=False)  # after a run it looks again
        assert len(sleeper) == 2
    assert sleeper[1].returncode == -signal.SIGKILL


def test_a_child_that_ended_is_not_started_again_at_once(tiny_context, built, sleeper):
    seconds = [0.0]
    with Rebuilder(tiny_context, clock=lambda: seconds[0]) as rebuilder:
        rebuilder.tend(busy=False)
        os.killpg(sleeper[0].pid, signal.SIGKILL)
        sleeper[0].wait(PATIENCE_SECONDS)
        rebuilder.tend(busy=False)
        rebuilder.tend(busy=False)
        assert len(sleeper) == 1
        seconds[0] += refresh.LOOK_AGAIN_SECONDS
        rebuilder.tend(busy=False)
        assert len(sleeper) == 2


@pytest.mark.parametrize(("setting", "n_started"), [("off", 0), ("known", 0), ("all", 1)])
def test_nothing_is_started_where_nothing_is_to_be_done(tiny_context, sleeper, setting, n_started):
    context = replace(tiny_context, settings=tiny_context.settings.model_copy(update={"rebuild_references": setting}))
    with Rebuilder(context) as rebuilder:
        rebuilder.tend(busy=False)
        assert len(sleeper) == n_started


@pytest.fixture
def stale(tiny_context, built):
    """Somebody else was erased, so that the bank must be built anew; gives that bank's key."""
    erase(tiny_context, next(person for person in tiny.people(tiny_context) if person not in built))
    return BankStore(tiny_context.settings.banks_folder).status(now=tiny_context.now())[0].key


def with_policy(context, policy, **changes):
    """The context with a policy that another process reads too."""
    path = context.settings.home / "policy.json"
    path.write_text(json.dumps(policy.to_dict()))
    return replace(context, settings=context.settings.model_copy(update={"policy": str(path), **changes}))


@pytest.fixture
def started(monkeypatch):
    """The real children that rebuilders started."""
    children, start = [], refresh._start
    monkeypatch.setattr(refresh, "_start", lambda settings: children.append(start(settings)) or children[-1])
    return children


def family_of(child):
    """A child and what it started."""
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(child)
        return [first, *first.children(recursive=True)]
    return []


def leads_a_session(pid):
    try:
        return os.getsid(pid) == pid
    except ProcessLookupError:  # it ended since it was listed
        return False


def training(family):
    """Those of a family that train, and the one above each: every one leads a session of its own."""
    return [each for each in family[1:] if leads_a_session(each.pid)]


def two_training(child):
    """The whole family of a child, once two processes train for it."""
    return wait_until(
        lambda: family if len(training(family := family_of(child))) == 4 else None, "two processes to train",
        seconds=240,
    )  # fmt: skip


def test_the_real_child_builds_what_is_stale(tiny_context, stale, started):
    def is_fresh():
        rebuilder.tend(busy=False)
        return [block.state for block in overview(tiny_context).blocks if block.bank] == ["fresh"]

    with Rebuilder(with_policy(tiny_context, POLICY)) as rebuilder:
        wait_until(is_fresh, "the child to build the bank", seconds=240)
    (status,) = BankStore(tiny_context.settings.banks_folder).status(now=tiny_context.now())
    assert status.key != stale


ENDLESS = replace(POLICY, n_models=100_000)  # no child ever finishes a bank of so many


@pytest.mark.usefixtures("stale")
def test_the_child_and_its_trainings_have_the_priority_of_any_other_program(tiny_context, started):
    """What stands back behind predictions is up to the governor. The lowest priority is inherited and cannot be taken
    back: beside any load the banks and spares that the next erasure needs would never be there."""
    with Rebuilder(with_policy(tiny_context, ENDLESS, jobs=2)) as rebuilder:
        rebuilder.tend(busy=False)
        found = [(each.nice(), os.sched_getscheduler(each.pid)) for each in two_training(started[0].pid)]
    assert set(found) == {(os.nice(0), os.SCHED_OTHER)}


PARENT = """
from service.banks import refresh
from service.settings import Settings
child = refresh._start(Settings())
print("child", child.pid, flush=True)
child.wait()
"""


@pytest.fixture
def ended():
    """Processes that must not outlive the test, whatever becomes of it."""
    family = []
    yield family
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def is_over(family):
    return not any(is_alive(process.pid) for process in family)


@pytest.mark.usefixtures("stale")
def test_a_run_ends_the_processes_that_train_too(tiny_context, started, ended):
    """They lead sessions of their own, so no signal to the child's group reaches them, and while a run computes they
    may not get the processor to notice by themselves that their parent is gone. Here they get none at all."""
    with Rebuilder(with_policy(tiny_context, ENDLESS, jobs=2)) as rebuilder:
        rebuilder.tend(busy=False)
        (child,) = started
        ended += two_training(child.pid)
        for process in training(ended):
            process.suspend()
        rebuilder.tend(busy=True)
        assert child.returncode == -signal.SIGKILL
        wait_until(lambda: is_over(ended), "the whole family to end")


@pytest.mark.usefixtures("stale")
def test_a_child_ends_whose_worker_was_killed_while_it_started(tiny_context, ended):
    """It takes seconds to import what it needs; by then its parent is another process."""
    settings = with_policy(tiny_context, ENDLESS).settings
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment(settings), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        told = line_of(parent, "child ")
        ended.append(psutil.Process(int(told.split()[1])))
        parent.kill()
    wait_until(lambda: is_over(family_of(ended[0].pid)), "the child to end")


@pytest.mark.usefixtures("stale")
def test_the_child_and_what_it_started_end_with_a_worker_that_was_killed(tiny_context, ended):
    settings = with_policy(tiny_context, ENDLESS, jobs=2).settings
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment(settings), cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as parent:
        ended.append(psutil.Process(parent.pid))
        told = line_of(parent, "child ")
        ended += two_training(int(told.split()[1]))
        parent.kill()
    wait_until(lambda: is_over(ended), "the whole family to end")
