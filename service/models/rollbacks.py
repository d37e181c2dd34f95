"""Going back to an older model version, as far as erasure allows.

    ordered ──► done      every serving process answers with it again, or refuses to answer
       └──────► refused   `note` says why; what was in service stayed in service

An older version may come back only if its weights exist, served before, and nobody was erased since they were made: no
weights that remember an erased person ever serve again. The API writes an order down; the worker carries it out between
two runs, by the same two-phase swap as any deployment, and writes how it ended to the log. A version that comes back
gets a new generation: generations only grow.
"""

from __future__ import annotations

import structlog
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, col, func, select

from service.context import LINE, Context
from service.errors import ConflictError, ExpungeError, NotFoundError, TryLaterError
from service.keys.api_keys import Client
from service.models import deployment, registry
from service.models.barrier import Barrier
from service.store import ledger
from service.store.engine import reading, session
from service.store.tables import Deployment, ErasureRequest, ModelVersion, OpenLine, RollbackOrder

log = structlog.get_logger()

ORDERED, DONE, REFUSED = "ordered", "done", "refused"


class RollbackRefusedError(ConflictError):
    """The version may not, or cannot, come back."""

    title = "Rollback refused"


def refusal(s: Session, context: Context, version: ModelVersion) -> str | None:  # noqa: PLR0911  (one a reason)
    """Why a version may not be gone back to, in a sentence; none if it may."""
    pointer = s.get(Deployment, LINE)
    if pointer is None or version.digest == pointer.committed_digest:
        return "Expected an older version, this one is in service."
    if version.state == "destroyed":
        return "Those weights were destroyed and cannot come back; train a new model."
    if version.state != "retired" or version.generation is None:
        return "Expected a version that was in service before; this one never was, and only the audit lets new ones in."
    if version.generation < pointer.oldest_allowed_generation:
        return (
            f"Expected generation {pointer.oldest_allowed_generation} or later, this one has {version.generation}: "
            "those weights remember a person who was erased."
        )
    erased_since = select(func.count()).where(
        ErasureRequest.outcome == "erased", col(ErasureRequest.completed_at) >= version.created_at
    )
    if n_erased := s.exec(erased_since).one():
        return (
            f"Expected that nobody was erased since those weights were made on {version.created_at.date()}; "
            f"{n_erased} request(s) completed since, and those weights may remember the people."
        )
    if not registry.is_held(context, version.digest):
        return "Expected the weights among the service's files, found none; restore them from a backup."
    return None


def order(context: Context, client: Client, digest: str, reason: str) -> RollbackOrder:
    """Write down that a version is to come back. The same order while one is open is that one.

    Raises:
        NotFoundError: no such version.
        RollbackRefusedError: it may not come back; the detail says why.
        ConflictError: a run is open, or an order for another version.
    """
    with session(context.engine) as s:
        try:
            version = registry.find(s, digest)
        except NotFoundError:
            raise NotFoundError("There is no such model version.") from None
        waiting = _open_order(s)
        if waiting is not None and waiting.digest == digest:
            return waiting
        if waiting is not None:
            raise ConflictError(f"Expected no other rollback to be open; order {waiting.id} is. Wait for its end.")
        if (sentence := refusal(s, context, version)) is not None:
            raise RollbackRefusedError(sentence)
        if s.get(OpenLine, LINE) is not None:
            raise ConflictError(
                "Expected no erasure under way: it puts another model into service and destroys older ones. Wait for "
                "its end and read which versions are left."
            )
        pointer = s.get_one(Deployment, LINE)
        placed = RollbackOrder(
            id=context.new_id(), line=LINE, state=ORDERED, digest=digest, from_digest=pointer.committed_digest,
            reason=reason, ordered_by=client.id, ordered_at=context.now(), finished_at=None,
        )  # fmt: skip
        s.add(placed)
        try:
            s.commit()
        except IntegrityError:
            raise ConflictError("Expected no other rollback to be open; one was ordered just now.") from None
    return placed


def carry_out(context: Context) -> RollbackOrder | None:
    """Carry out the open order, if there is one and no run is open; the worker's, and safe to repeat after a kill.

    An order whose version is in service by now, but not acknowledged by every process in time, stays open.
    """
    with reading(context.engine) as s:
        placed = _open_order(s)
        if placed is None or s.get(OpenLine, LINE) is not None:
            return None
        is_active = s.get_one(Deployment, LINE).committed_digest == placed.digest
        sentence = None if is_active else refusal(s, context, registry.find(s, placed.digest))
    if sentence is not None:
        return _end(context, placed, REFUSED, note=sentence)
    try:
        barrier = deployment.deploy(context, placed.digest)
    except TryLaterError as error:
        pointer = deployment.pointer(context)
        if pointer is not None and pointer.committed_digest == placed.digest:
            return _note(context, placed, error.detail)
        return _end(context, placed, REFUSED, note=error.detail)
    except ExpungeError as error:
        return _end(context, placed, REFUSED, note=error.detail)
    return _end(context, placed, DONE, barrier=barrier)


def _open_order(s: Session) -> RollbackOrder | None:
    query = select(RollbackOrder).where(RollbackOrder.line == LINE, RollbackOrder.state == ORDERED)
    return s.exec(query).one_or_none()


def _note(context: Context, placed: RollbackOrder, note: str) -> RollbackOrder:
    with session(context.engine) as s:
        row = s.get_one(RollbackOrder, placed.id)
        row.note = note
        s.add(row)
        s.commit()
    return row


def _end(
    context: Context, placed: RollbackOrder, state: str, *, note: str = "", barrier: Barrier | None = None
) -> RollbackOrder:
    """The order's end and its entry in the log, in one transaction. The reason in words stays out of the log."""
    with session(context.engine) as s:
        row, now = s.get_one(RollbackOrder, placed.id), context.now()
        row.state, row.note, row.finished_at = state, note, now
        row.generation = barrier.generation if barrier else None
        row.log_index = ledger.record(
            s, "rollback", now=now, rollback_id=row.id, end=state, weights=row.digest, from_weights=row.from_digest,
            generation=row.generation, n_processes=len(barrier.processes) if barrier else None,
            ordered_by=row.ordered_by,
        )  # fmt: skip
        s.add(row)
        s.commit()
    log.info(f"rollback.{state}", rollback_id=row.id, model_version=row.digest, generation=row.generation)
    return row
