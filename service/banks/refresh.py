"""Keeping reference banks ready: what each block has, and bringing up to date what grew stale.

An erasure makes the banks of all other blocks stale by one person. That matters when one more erasure would make them
too stale to judge: the worker then lets a child process train them anew while no run is open (`Rebuilder`), and kills
it the moment one is: banks are safe from that at any point, and finished models stay. The child works down a list,
what would make a request wait first. Its trainings stand back behind predictions as all others do
(`service.training.governor`); they had the lowest priority once, and came to nothing beside other programs.

What it sees is written to the database (`service.banks.overview`) for the operators.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import psutil
import structlog
from sqlmodel import col, delete

from audit.policy import Policy
from service.banks import replica, spares
from service.banks.blocks import blocks
from service.banks.build import BankPlan, OnProgress, build_bank, discard_unnamed, plan_exact_bank
from service.banks.file_format import IN, MARGIN, OUT
from service.banks.oracles import FIRST_SEED, build_oracles, n_asked_for, oracle_plan
from service.banks.originals import N_ORIGINALS, STALENESS_MAX, build_originals, originals_plan
from service.banks.store import BankKey, BankStatus, BankStore, Staleness
from service.context import LINE, Context
from service.launch import environment
from service.settings import Settings
from service.store.engine import session
from service.store.tables import ReferenceBlock
from service.training.data import asked_to_go, images_in_service, recipe_of
from service.training.governor import train_for
from service.training.spec import intact

log = structlog.get_logger()

LOOK_AGAIN_SECONDS = 600.0  # data may also change by hand
EVERYBODY, SPARES = "everybody", "spares"
"""In place of a block's name: the bank of originals, and the spares of all blocks."""


@dataclass(frozen=True)
class Surveyed:
    """What a block has.

    Attributes:
        plan: the bank that would be built for the block now.
        row: for the database.
        had_bank: whether any bank holds columns of somebody in the block.
    """

    plan: BankPlan
    row: ReferenceBlock
    had_bank: bool


def survey(context: Context, policy: Policy) -> list[Surveyed]:
    """Every block of the training split and its references, as the data and the banks' files are now."""
    settings, keyring, recipe = context.settings, context.keyring, recipe_of(context)
    images, found = images_in_service(context, recipe), []
    with intact(images) as faces:
        absent, assigned = asked_to_go(context, faces), blocks(settings, keyring, faces)
        people: dict[str, set[str]] = {}
        for subject in faces.train_subjects():
            people.setdefault(assigned[keyring.block_hash(subject)], set()).add(subject)
        statuses = {status.key.digest: status for status in BankStore(settings.banks_folder).status(now=context.now())}
        held = {tag for status in statuses.values() if status.key.statistic != IN for tag in status.subject_tags}
        for block, members in sorted(people.items()):
            plan = plan_exact_bank(context, recipe, images, members, absent - members)
            leaving = {keyring.block_hash(subject) for subject in absent - members}
            row = _row(context, policy, plan, leaving, statuses)
            row.block, row.n_people = block, len(members)
            found.append(Surveyed(plan, row, not held.isdisjoint(plan.tags)))
    return found


def _row(
    context: Context, policy: Policy, plan: BankPlan, leaving: set[str], statuses: dict[str, BankStatus]
) -> ReferenceBlock:
    store, exact, now = BankStore(context.settings.banks_folder), statuses.get(plan.key.digest), context.now()
    usable = exact is not None and set(plan.example_ids) <= set(exact.example_ids)
    n_next = exact.n_models if exact and usable else 0
    if n_next >= policy.n_models:
        return _filled("fresh", exact, plan.staleness, policy, now=now, n_next=n_next)
    found: tuple[BankKey, Staleness] | None = store.find_stale(
        plan.key, example_ids=plan.example_ids, learned=plan.learned, tested=plan.tested, leaving=leaving,
        n_models=policy.n_models, share_max=1.0,
    )  # fmt: skip
    if found is not None:
        state = "stale" if found[1].share <= policy.staleness_max else "outdated"
        return _filled(state, statuses.get(found[0].digest), found[1], policy, now=now, n_next=n_next)
    return _filled("building" if n_next else "missing", exact, plan.staleness, policy, now=now, n_next=n_next)


def _filled(
    state: str, status: BankStatus | None, staleness: Staleness, policy: Policy, *, now: datetime, n_next: int
) -> ReferenceBlock:
    row = ReferenceBlock(
        line=LINE, block="", state=state, n_people=0, n_models=0, n_wanted=policy.n_models, n_next=n_next,
        n_learned=staleness.n_learned, n_gone=staleness.n_learned_gone, staleness=staleness.share, updated_at=now,
    )  # fmt: skip
    if status is not None:
        row.bank, row.n_models = status.key.digest, status.n_models
        row.size_bytes, row.cost_seconds = status.size_bytes, status.cost_seconds
        row.begun_at = now - timedelta(seconds=status.age_seconds)
    return row


def publish(context: Context, surveyed: list[Surveyed]) -> None:
    """Put what was seen into the database, in place of what was seen before."""
    with session(context.engine) as s:
        s.exec(delete(ReferenceBlock).where(col(ReferenceBlock.line) == LINE))
        for block in surveyed:
            s.add(ReferenceBlock(**block.row.model_dump()))
        s.commit()


def rebuild(
    context: Context,
    policy: Policy,
    *,
    missing_too: bool,
    on_block: Callable[[str, int, int], OnProgress] | None = None,
) -> int:
    """Train the banks that a request would wait for, now or after one more erasure; gives how many were trained.

    What would make a request wait longest comes first; then the bank of originals, spares and oracles. A bank that lost
    people and may still judge is left as it is.

    Args:
        missing_too: also blocks that never had a bank.
        on_block: called with (block, number from 1, blocks to do) before each; gives what is told of the models.

    Raises:
        PoorModelError: something is to be trained, and the model in service answers one class only.
    """
    settings = context.settings
    store, n_oracles = BankStore(settings.banks_folder), n_asked_for(settings, policy)
    surveyed = survey(context, policy)
    publish(context, surveyed)
    fresh = [block.plan for block in surveyed if block.row.state == "fresh"]
    ready = [plan for plan in map(oracle_plan, fresh) if not _lacking(store, plan, n_oracles)] if n_oracles else []
    _discard_superseded(store, fresh + ready, context)
    urgency = {"building": 0, "outdated": 0, "missing": 1, "stale": 2}
    todo = [block for block in surveyed if _is_needed(block, policy, missing_too=missing_too)]
    todo.sort(key=lambda block: (urgency[block.row.state], -block.row.staleness, block.row.block))
    if todo:
        _require_good_model(context)
    for number, block in enumerate(todo, 1):
        told = on_block(block.row.block, number, len(todo)) if on_block else None

        def progress(done: int, wanted: int, row: ReferenceBlock = block.row, told: OnProgress | None = told) -> None:
            _note(context, row, done)
            if done:
                context.reached("building.model")
            if told is not None:
                told(done, wanted)

        build_bank(store, block.plan, policy.n_models, settings, progress, now=context.now())
        _discard_superseded(store, [block.plan], context)
    n_built = len(todo) + _renew_originals(context, store, missing_too=missing_too, on_block=on_block)
    if policy.reads_spares:
        asked_for = [block.plan for block in surveyed if missing_too or block.had_bank]
        n_built += _renew_spares(context, asked_for, on_block)
    for block in surveyed if n_oracles else []:
        plan = oracle_plan(block.plan)
        if (missing_too or block.had_bank) and _lacking(store, plan, n_oracles):
            _require_good_model(context)
            build_oracles(store, plan, n_oracles, settings, lambda done, wanted: None, now=context.now())
            _discard_superseded(store, [plan], context)
    replica.publish(context)
    publish(context, survey(context, policy))
    return n_built


def _require_good_model(context: Context) -> None:
    """Nothing if the model in service may be judged: asked before something is trained, since it loads torch.

    Raises:
        PoorModelError: it answers one class only.
    """
    from service.training.answers import require_good_model_in_service

    require_good_model_in_service(context)


def _is_needed(block: Surveyed, policy: Policy, *, missing_too: bool) -> bool:
    """Whether a block's bank is to be trained now: it may not judge, or may not after one more erasure."""
    row = block.row
    if row.state == "fresh" or not (missing_too or block.had_bank):
        return False
    return row.state != "stale" or row.n_gone + 1 > policy.staleness_max * row.n_learned


def _renew_originals(
    context: Context, store: BankStore, *, missing_too: bool, on_block: Callable[[str, int, int], OnProgress] | None
) -> int:
    """Train the bank of originals where there is none that may speak, or none after one more erasure; 1 if it was."""
    recipe = recipe_of(context)
    images = images_in_service(context, recipe)
    with intact(images) as faces:
        absent = asked_to_go(context, faces)
        plan = originals_plan(context, recipe, images, absent)
        leaving = {context.keyring.block_hash(subject) for subject in absent}
    known = [status.key for status in store.status(now=context.now()) if status.key.statistic == IN]
    if not plan.example_ids or not (missing_too or known):
        return 0
    found = store.find_stale(
        plan.key, example_ids=plan.example_ids, learned=plan.learned, tested=plan.tested, leaving=leaving,
        n_models=N_ORIGINALS, share_max=STALENESS_MAX,
    )  # fmt: skip
    if found is not None and found[1].n_learned_gone + 1 <= STALENESS_MAX * found[1].n_learned:
        return 0
    _require_good_model(context)
    told = on_block(EVERYBODY, 1, 1) if on_block else None
    build_originals(store, plan, N_ORIGINALS, context.settings, told or (lambda done, wanted: None), now=context.now())
    _discard_superseded(store, [plan], context)
    return 1


def _renew_spares(
    context: Context, plans: list[BankPlan], on_block: Callable[[str, int, int], OnProgress] | None
) -> int:
    """Train the spares that blocks lack; gives how many."""
    if spares.lacking(context, recipe_of(context), plans):
        _require_good_model(context)
    told = on_block(SPARES, 1, 1) if on_block else None
    return spares.train_spares(context, recipe_of(context), plans, told or (lambda done, wanted: None))


def _note(context: Context, row: ReferenceBlock, n_next: int) -> None:
    """A further model of the bank that is being built."""
    with session(context.engine) as s:
        stored = s.get(ReferenceBlock, (LINE, row.block))
        if stored is None:
            return
        stored.n_next, stored.updated_at = n_next, context.now()
        if stored.state in ("missing", "building"):
            stored.state, stored.n_models = "building", n_next
        s.add(stored)
        s.commit()


def _lacking(store: BankStore, plan: BankPlan, n_oracles: int) -> int:
    """Oracles still to be trained."""
    return len(store.missing_seeds(plan.key, n_oracles, first=FIRST_SEED))


def _discard_superseded(store: BankStore, fresh: list[BankPlan], context: Context) -> None:
    """Banks of nobody but one block's people, made by the same recipe, are not needed beside the block's fresh one.

    One that an open run's plan names stays until the first rebuild after the run.
    """
    if not fresh:
        return
    keys, mine = {plan.key for plan in fresh}, [(_made_alike(plan.key), set(plan.tags)) for plan in fresh]
    superseded = [
        status.key
        for status in store.status(now=context.now())
        if status.key not in keys
        and any(_made_alike(status.key) == alike and status.subject_tags <= tags for alike, tags in mine)
    ]
    discard_unnamed(store, superseded, context.settings)


def _made_alike(key: BankKey) -> BankKey:
    """The key less what data the models saw; a bank from before banks held views is none beside one that does."""
    statistic = OUT if key.statistic == MARGIN else key.statistic
    return replace(key, training_digest="", test_digest="", statistic=statistic)


class Rebuilder:
    """The worker's side: a child process that rebuilds while the line is idle.

    Leaving the block ends the child; should the worker be killed, the child notices within half a second and ends too.
    """

    def __init__(self, context: Context, clock: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._due_at = clock()

    def __enter__(self) -> Rebuilder:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def tend(self, *, busy: bool) -> None:
        """Called often: stops the child if the line is busy, starts one if it is idle and there may be work."""
        if busy:
            self._stop()
            self._due_at = self._clock()  # the run may change the data: look again after it
        elif self._child is not None:
            if self._child.poll() is not None:
                self._child = None
        elif self._clock() >= self._due_at:
            self._due_at = self._clock() + LOOK_AGAIN_SECONDS
            if _has_work(self._context.settings):
                self._child = _start(self._context.settings)

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        _kill_with_descendants(child)
        log.info("rebuilding.stopped")


def _has_work(settings: Settings) -> bool:
    if settings.qualify_when_idle:
        return True
    if settings.rebuild_references == "known":
        return BankStore(settings.banks_folder).any()
    return settings.rebuild_references == "all"


def _start(settings: Settings) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "service.cli", "references", "refresh", "--child-of", str(os.getpid())]
    if settings.rebuild_references == "all":
        command.append("--all")
    log.info("rebuilding.started")
    return subprocess.Popen(command, env=environment(settings), start_new_session=True)


def _kill_with_descendants(child: subprocess.Popen[bytes]) -> None:
    """Kill a child and whatever it started.

    Processes that train lead sessions of their own, so a signal to the child's group does not reach them. They end by
    themselves once their parent is gone, but only when they get the processor, which they may be the last to get.
    """
    if child.poll() is None:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(child.pid)
            process.suspend()  # it starts nothing more
            for each in [*process.children(recursive=True), process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
    child.wait()


def become_child(parent: int) -> None:
    """In the child: an end when the worker is gone, also if it went while the child started.

    Args:
        parent: process id of the worker.
    """
    train_for("upkeep")

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os.killpg(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
