"""A run's row: its phase, its requests, its end."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlmodel import Session, col, select

from service.context import LINE, Context
from service.errors import NotFoundError
from service.requests import states
from service.store.engine import fit_id, reading, session
from service.store.tables import ErasureRequest, OpenLine, Run


def get_run(s: Session, run_id: str) -> Run:
    """The run's row."""
    run = s.get(Run, run_id) if fit_id(run_id) else None
    if run is None:
        raise NotFoundError(f"Expected run {run_id!a} in the database, found none.")
    return run


def load_run(context: Context, run_id: str) -> Run:
    """The run's row, detached."""
    with reading(context.engine) as s:
        return get_run(s, run_id)


def requests_of(s: Session, run_id: str) -> list[ErasureRequest]:
    """The run's requests, in the order they came."""
    query = select(ErasureRequest).where(ErasureRequest.run_id == run_id)
    return list(s.exec(query.order_by(col(ErasureRequest.filed_at), col(ErasureRequest.id))))


def advance(context: Context, run_id: str, phase: str) -> None:
    """Move the run and all its requests to a phase; requests that are in it already stay as they are."""
    with session(context.engine) as s:
        now = context.now()
        run = get_run(s, run_id)
        moving = [request for request in requests_of(s, run_id) if request.state != phase]
        states.move_all(s, [(request, {}) for request in moving], phase, now=now)
        run.stage, run.stage_note, run.updated_at = phase, "", now
        s.add(run)
        s.commit()


def note(context: Context, run_id: str, text: str) -> None:
    """Set the progress text that is shown with the run."""
    with session(context.engine) as s:
        run = get_run(s, run_id)
        run.stage_note, run.updated_at = text, context.now()
        s.add(run)
        s.commit()


def give_up(context: Context, run_id: str, reason: str) -> None:
    """End a run that cannot go on; its requests need attention and keep their deadlines. An ended run stays as it is.

    A run whose purge has begun does not end. It keeps the line, and goes on when its requests are approved (`resume`).
    """
    with session(context.engine) as s:
        now = context.now()
        run = get_run(s, run_id)
        if run.finished_at is not None:
            return
        moving = [request for request in requests_of(s, run_id) if request.state != "needs_attention"]
        if run.purge is None:
            states.stop(s, moving, reason, now=now)
        else:
            why = {"attention_reason": reason}
            states.move_all(s, [(request, why) for request in moving], "needs_attention", now=now, note=reason)
        run.stage, run.stage_note, run.updated_at = "needs_attention", reason, now
        if run.purge is None:
            run.finished_at = now
            release_line(s, run_id)
        s.add(run)
        s.commit()


def must_be_resumed(s: Session, run_id: str) -> bool:
    """Whether a run waits for a human in the middle of its purge, which only this run can finish."""
    run = get_run(s, run_id)
    return run.purge is not None and run.finished_at is None and run.stage == "needs_attention"


def resume(s: Session, run_id: str, *, now: datetime, note: str, **fields: Any) -> None:
    """Let a run and all its requests go on with the purge, in the caller's transaction."""
    run = get_run(s, run_id)
    waiting = [request for request in requests_of(s, run_id) if request.state == "needs_attention"]
    states.move_all(s, [(request, fields) for request in waiting], "purging", now=now, note=note)
    run.stage, run.stage_note, run.updated_at = "purging", "", now
    run.n_resumptions += 1
    s.add(run)


def workflow_id(run: Run) -> str:
    """Id of the workflow that carries out the run now; each resumption has its own."""
    return f"{run.id}.{run.n_resumptions}" if run.n_resumptions else run.id


def release_line(s: Session, run_id: str) -> None:
    """Free the line for its next run."""
    open_line = s.get(OpenLine, LINE)
    if open_line is not None and open_line.run_id == run_id:
        s.delete(open_line)
