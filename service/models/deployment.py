"""Which generation answers: the pointer of the model line, and the swap of all serving processes as the worker runs it.

A swap has two phases. *Staging*: the pointer names the next generation, each serving process loads it beside the one it
answers with and says so in its row. *Commit*: the pointer moves in one transaction, then the commit word of this
machine. Generations only grow, also on a rollback, so "older" and "lower" are one thing. Every function may be repeated
after a kill at any point.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog
from sqlmodel import Session, col, func, select

from service.context import LINE, Context
from service.errors import ConflictError, TryLaterError, WeightsError
from service.models import registry
from service.models.barrier import LOOK_SECONDS, Barrier, Seen, look, wait_for_barrier
from service.models.commit_word import CommitWord
from service.store.engine import reading, session
from service.store.tables import Deployment, ModelVersion, ServingWorker

log = structlog.get_logger()


def pointer(context: Context) -> Deployment | None:
    """The line's pointer, or none before the first version was staged."""
    with reading(context.engine) as s:
        return s.get(Deployment, LINE)


def activate_first(context: Context, digest: str, *, before_commit: Callable[[], None] = lambda: None) -> int:
    """Make a version the active one where none is; gives its generation. Running processes follow by themselves.

    Args:
        before_commit: as in `deploy`.

    Raises:
        ConflictError: another version is active; deploy instead.
        NotFoundError, WeightsError: as `stage`.
    """
    current = pointer(context)
    if current is not None and current.committed_generation and current.committed_digest != digest:
        raise ConflictError(f"Expected no active version, found {current.committed_digest}; deploy the new one.")
    generation = stage(context, digest)
    _last_look(context, generation, before_commit)
    return commit(context, generation)


def stage(context: Context, digest: str) -> int:
    """Name a version as the next one and give its generation, one above every one before it.

    Staging the version that is staged or active changes nothing. Another one that is staged gives way.

    Raises:
        NotFoundError: no such version.
        WeightsError: destroyed, missing, altered or not signed with this service's key.
        ConflictError: it is older than the oldest generation allowed: those weights remember an erased person.
    """
    registry.load_checked(context, digest)  # before any process is told of it
    registry.publish(context, digest)  # where each of them can get it
    with session(context.engine) as s:
        version = registry.find(s, digest)
        now = context.now()
        row = _locked(s) or Deployment(line=LINE, committed_generation=0, committed_digest="", updated_at=now)
        if row.staging_generation is not None and row.staging_digest == digest:
            return row.staging_generation
        if row.committed_digest == digest:
            return row.committed_generation
        if version.state == "destroyed":
            raise WeightsError(f"Expected weights that may be served, got {digest}, which were destroyed.")
        is_older = version.generation is not None and version.generation < row.oldest_allowed_generation
        if is_older and version.state != registry.SPARE:  # one that was staged once in vain and never served
            raise ConflictError(
                f"Expected generation {row.oldest_allowed_generation} or later, got {version.generation}: "
                "those weights remember a person who was erased."
            )
        generation = _last_generation(s, row) + 1
        version.generation = generation
        row.staging_generation, row.staging_digest, row.updated_at = generation, digest, now
        s.add(version)
        s.add(row)
        s.commit()
    return generation


def commit(context: Context, generation: int, *, forget_older: bool = False) -> int:
    """Move the pointer to the staged generation, then the commit word of this machine; gives the generation.

    Args:
        forget_older: refuse every older generation from here on; in the same transaction.

    Raises:
        ConflictError: neither staged nor committed.
    """
    with session(context.engine) as s:
        row = _locked(s)
        if row is None or generation not in {row.staging_generation, row.committed_generation}:
            raise ConflictError(f"Expected generation {generation} to be staged; it is neither staged nor active.")
        if row.committed_generation != generation:
            _make_active(s, row)
        if forget_older:
            row.oldest_allowed_generation = max(row.oldest_allowed_generation, generation)
        row.updated_at = context.now()
        s.add(row)
        s.commit()
    context.reached("deploying.pointer")
    with CommitWord(context.settings.commit_word_path) as word:
        word.advance(generation)
    return generation


def abort(context: Context, generation: int) -> None:
    """Take back a staged generation; nothing happens if it is not staged. Its number is not given again."""
    with session(context.engine) as s:
        row = _locked(s)
        if row is not None and row.staging_generation == generation:
            row.staging_generation = row.staging_digest = None
            row.updated_at = context.now()
            s.add(row)
            s.commit()


def deploy(
    context: Context,
    digest: str,
    *,
    forget_older: bool = False,
    before_commit: Callable[[], None] = lambda: None,
    timeout_seconds: float | None = None,
    sleep: Callable[[float], None] = time.sleep,
    steady: Callable[[], float] = time.monotonic,
) -> Barrier:
    """Stage a version in every serving process, commit it, and wait until no process can answer with an older one.

    Args:
        forget_older: refuse older generations for ever: they remember a person who was erased.
        before_commit: a last look after the staging; what it raises takes the staging back. Whoever stages another
            version meanwhile wins: the commit is then refused.
        timeout_seconds: for each of the two phases; none: as in the settings.

    Raises:
        NotFoundError, WeightsError, ConflictError: as `stage`; WeightsError also if no process can load the version.
            What was active before stays active.
        TryLaterError: not all processes staged, or not all acknowledged, in time. Before the commit the staging is
            taken back; after it the version is active, and calling again goes on waiting.
    """
    patience = context.settings.swap_timeout_seconds if timeout_seconds is None else timeout_seconds
    began = context.now()
    generation = stage(context, digest)
    context.reached("deploying.staging")

    def wait_until_loaded() -> None:
        deadline = steady() + patience
        while not (seen := look(context)).all_have(lambda row: _has_loaded(row, generation)):
            _refuse_if_all_failed(context, seen, generation)
            if steady() > deadline:
                abort(context, generation)
                raise TryLaterError(
                    f"Expected every serving process to load {digest} in {patience:.0f} s. {seen.sentence()}"
                )
            sleep(LOOK_SECONDS)

    wait_until_loaded()
    context.reached("deploying.staged")
    _last_look(context, generation, before_commit)
    wait_until_loaded()  # also those processes that started during the last look
    commit(context, generation, forget_older=forget_older)
    log.info("swap.committed", generation=generation, model_version=digest)
    context.reached("deploying.committed")
    barrier = wait_for_barrier(
        context, generation, digest, began=began, timeout_seconds=patience, sleep=sleep, steady=steady
    )
    log.info("swap.barrier", generation=generation, n_processes=len(barrier.processes))
    return barrier


def _last_look(context: Context, generation: int, before_commit: Callable[[], None]) -> None:
    try:
        before_commit()
    except Exception:
        abort(context, generation)
        raise


def failure_prefix(generation: int) -> str:
    """How a process begins `last_error` when it could not load a generation."""
    return f"generation {generation}: "


def _locked(s: Session) -> Deployment | None:
    """The pointer for this transaction alone (PostgreSQL; in SQLite writers are alone anyway)."""
    return s.get(Deployment, LINE, with_for_update=True)


def _has_loaded(row: ServingWorker, generation: int) -> bool:
    return max(row.staged_generation, row.acknowledged_generation) >= generation


def _refuse_if_all_failed(context: Context, seen: Seen, generation: int) -> None:
    errors = [row.last_error for row in seen.alive()]
    if errors and all(error.startswith(failure_prefix(generation)) for error in errors):
        abort(context, generation)
        raise WeightsError(f"Expected weights that can be served; no serving process could load them. {errors[0]}")


def _make_active(s: Session, row: Deployment) -> None:
    """The staged version active, the one before it retired."""
    before = s.get(ModelVersion, row.committed_digest)
    if before is not None and before.state == "active":
        before.state = "retired"
        s.add(before)
    active = registry.find(s, row.staging_digest or "")
    active.state = "active"
    s.add(active)
    row.committed_generation, row.committed_digest = row.staging_generation or 0, active.digest
    row.staging_generation = row.staging_digest = None


def _last_generation(s: Session, row: Deployment) -> int:
    highest = s.exec(select(func.max(col(ModelVersion.generation))).where(ModelVersion.line == LINE)).one()
    return max(highest or 0, row.committed_generation, row.staging_generation or 0)
