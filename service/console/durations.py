"""Histograms of how long things took, computed by the database from the legal record itself."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlmodel import Session, col, func, select

from service.store.tables import ErasureRequest, RequestEvent
from service.telemetry.catalog import LONG

Durations = dict[str, tuple[list[int], float]]
"""By label: how many took at most each of `LONG` and how many there were, then the seconds of all together."""


def request_durations(s: Session) -> Durations:
    """From filing to completion, by outcome."""
    seconds = _seconds(s, col(ErasureRequest.filed_at), col(ErasureRequest.completed_at))
    return _histogram(
        s,
        select(col(ErasureRequest.outcome).label("label"), seconds.label("seconds"))
        .where(col(ErasureRequest.completed_at).is_not(None))
        .subquery(),
    )


def stage_durations(s: Session) -> Durations:
    """Each stay of a request in a state, once it has left it; notes and extensions in between do not end a stay."""
    from_state, to_state = col(RequestEvent.from_state), col(RequestEvent.to_state)
    request, number = col(RequestEvent.request_id), col(RequestEvent.id)
    entered = func.lag(col(RequestEvent.at)).over(partition_by=request, order_by=number)
    moves = (
        select(from_state.label("label"), entered.label("entered"), col(RequestEvent.at).label("left"))
        .where(sa.or_(from_state.is_(None), from_state != to_state))
        .subquery()
    )
    seconds = _seconds(s, moves.c.entered, moves.c.left)
    stays = select(moves.c.label, seconds.label("seconds")).where(moves.c.label.is_not(None)).subquery()
    return _histogram(s, stays)


def _histogram(s: Session, rows: Any) -> Durations:
    """Cumulative counts of `rows.seconds` by `rows.label`, in one pass."""
    at_most = [func.sum(sa.case((rows.c.seconds <= bound, 1), else_=0)) for bound in LONG]
    query = sa.select(rows.c.label, *at_most, func.count(), func.sum(rows.c.seconds)).group_by(rows.c.label)
    return {str(label): ([int(count) for count in counts], float(total)) for label, *counts, total in s.execute(query)}


def _seconds(s: Session, start: Any, end: Any) -> Any:
    """Seconds between two instants, in the database's own words."""
    if s.get_bind().dialect.name == "sqlite":
        return (func.julianday(end) - func.julianday(start)) * 86400.0
    return sa.cast(sa.extract("epoch", end - start), sa.Float)
