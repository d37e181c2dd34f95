"""What the pages read from the database; a client that does not see all is shown its own requests only.

Tested in `tests/service/console/test_reading_pages.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated, Literal
from urllib.parse import urlencode

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from sqlalchemy import ColumnElement, func, true
from sqlmodel import Session, and_, col, or_, select

from service.context import LINE
from service.keys.api_keys import Client
from service.requests import states
from service.requests.intake import MASS_DELETION
from service.requests.schemas import State
from service.store.engine import fit_id
from service.store.tables import (
    Attempt,
    CertificateRecord,
    Deployment,
    ErasureRequest,
    LogLeaf,
    ModelVersion,
    OpenLine,
    RequestEvent,
    RollbackOrder,
    Run,
    ServingWorker,
    WorkerLease,
)

Day = Annotated[date | None, BeforeValidator(lambda text: text or None)]
SOON = timedelta(days=7)
ON_A_PAGE = 50
OPEN = tuple(state for state in states.STATES if state not in states.ENDS)


class Search(BaseModel):
    """What the list of requests is narrowed to."""

    model_config = ConfigDict(frozen=True)

    state: Annotated[State | Literal["open", "all"], BeforeValidator(lambda text: text or "open")] = "open"
    due: Literal["", "late", "soon"] = ""
    id: str = Field("", max_length=80)
    page: int = Field(1, ge=1, le=100_000)

    @property
    def is_narrow(self) -> bool:
        """Whether it is anything but the list a visitor starts with."""
        return (self.state, self.due, self.id.strip()) != ("open", "", "")


@dataclass(frozen=True)
class Overview:
    """Counts over all requests that a client may see."""

    by_state: dict[str, int]
    n_late: int
    n_soon: int

    @property
    def n_open(self) -> int:
        """Requests whose clock runs."""
        return sum(self.by_state.get(state, 0) for state in OPEN)

    @property
    def n_all(self) -> int:
        """Requests there ever were."""
        return sum(self.by_state.values())


def overview(s: Session, client: Client, now: datetime) -> Overview:
    """The figures above the list."""
    mine, is_open = _seen_by(client), col(ErasureRequest.state).in_(OPEN)

    def count(*which: ColumnElement[bool]) -> int:
        return s.exec(select(func.count()).select_from(ErasureRequest).where(mine, is_open, *which)).one()

    by_state = select(ErasureRequest.state, func.count()).where(mine).group_by(ErasureRequest.state)
    due_at = col(ErasureRequest.due_at)
    return Overview(
        dict(s.exec(by_state).all()), n_late=count(due_at < now), n_soon=count(due_at >= now, due_at < now + SOON)
    )


def by_deadline(s: Session, client: Client, search: Search, now: datetime) -> tuple[list[ErasureRequest], bool]:
    """One page of the requests searched for, open ones by deadline before ended ones; and whether more follow."""
    query = select(ErasureRequest).where(_seen_by(client))
    state, wanted_id = col(ErasureRequest.state), search.id.strip()
    if search.state == "open":
        query = query.where(state.in_(OPEN))
    elif search.state != "all":
        query = query.where(state == search.state)
    if search.due:
        query = query.where(state.in_(OPEN), ErasureRequest.due_at < (now if search.due == "late" else now + SOON))
    if search.due == "soon":
        query = query.where(ErasureRequest.due_at >= now)
    if wanted_id:
        if not fit_id(wanted_id):
            return [], False
        query = query.where(col(ErasureRequest.id).startswith(wanted_id, autoescape=True))
    order = (state.not_in(OPEN), col(ErasureRequest.due_at), col(ErasureRequest.id))
    start = (search.page - 1) * ON_A_PAGE
    rows = list(s.exec(query.order_by(*order).offset(start).limit(ON_A_PAGE + 1)))
    return rows[:ON_A_PAGE], len(rows) > ON_A_PAGE


class Span(BaseModel):
    """The days, in UTC, on which requests were received; none: no bound."""

    model_config = ConfigDict(frozen=True)

    since: Day = None
    until: Day = None

    @property
    def query(self) -> str:
        """The same span as a link's query."""
        given = {name: str(day) for name, day in (("since", self.since), ("until", self.until)) if day}
        return f"?{urlencode(given)}" if given else ""

    @property
    def holds(self) -> ColumnElement[bool]:
        """Whether a request was received on these days."""
        received_at = col(ErasureRequest.received_at)
        begun = received_at >= datetime.combine(self.since, time(), UTC) if self.since else true()
        return and_(begun, received_at <= datetime.combine(self.until, time.max, UTC) if self.until else true())


@dataclass(frozen=True)
class RegisterCounts:
    """Figures above the register: requests, those answered in time, those that were or are late, open ones."""

    n_all: int
    n_in_time: int
    n_late: int
    n_open: int


def received(s: Session, client: Client, span: Span, most: int | None = None) -> list[ErasureRequest]:
    """Requests received on these days, oldest first."""
    query = select(ErasureRequest).where(_seen_by(client), span.holds)
    return list(s.exec(query.order_by(col(ErasureRequest.received_at), col(ErasureRequest.id)).limit(most)))


def register_counts(s: Session, client: Client, span: Span, now: datetime) -> RegisterCounts:
    """How many requests were received on these days, and what became of them; see `register.entry_of`."""
    state, due_at, updated_at = col(ErasureRequest.state), col(ErasureRequest.due_at), col(ErasureRequest.updated_at)
    is_open, is_answered = state.in_(OPEN), state.in_(("completed", "rejected"))
    late = or_(and_(is_open, due_at < now), and_(is_answered, due_at < updated_at))

    def count(*which: ColumnElement[bool]) -> int:
        return s.exec(
            select(func.count()).select_from(ErasureRequest).where(_seen_by(client), span.holds, *which)
        ).one()

    return RegisterCounts(count(), count(is_answered, due_at >= updated_at), count(late), count(is_open))


def lately_ended(s: Session, client: Client, most: int = 5) -> list[ErasureRequest]:
    """The requests that ended last."""
    query = select(ErasureRequest).where(_seen_by(client), col(ErasureRequest.state).in_(states.ENDS))
    return list(s.exec(query.order_by(col(ErasureRequest.updated_at).desc(), col(ErasureRequest.id)).limit(most)))


def waiting_worker(s: Session) -> WorkerLease | None:
    """The worker, if something keeps it from working."""
    lease = s.get(WorkerLease, LINE)
    return lease if lease is not None and lease.waits_for else None


def open_run(s: Session) -> Run | None:
    """The run that is under way."""
    open_line = s.get(OpenLine, LINE)
    return s.get(Run, open_line.run_id) if open_line else None


def events_of(s: Session, request_id: str) -> list[RequestEvent]:
    """A request's moves, oldest first."""
    query = select(RequestEvent).where(RequestEvent.request_id == request_id)
    return list(s.exec(query.order_by(col(RequestEvent.id))))


def attempts_of(s: Session, run_id: str) -> list[Attempt]:
    """A run's attempts in the ladder's order."""
    return list(s.exec(select(Attempt).where(Attempt.run_id == run_id).order_by(col(Attempt.step))))


def requests_of_run(s: Session, run_id: str) -> list[ErasureRequest]:
    """Requests of a run and their followers, by deadline."""
    led = select(ErasureRequest.id).where(ErasureRequest.run_id == run_id)
    of_run = or_(ErasureRequest.run_id == run_id, col(ErasureRequest.linked_request_id).in_(led))
    return list(
        s.exec(select(ErasureRequest).where(of_run).order_by(col(ErasureRequest.due_at), col(ErasureRequest.id)))
    )


def n_held_with(s: Session, request: ErasureRequest) -> int:
    """How many requests of the same call wait because it was a mass deletion."""
    if request.attention_reason != MASS_DELETION:
        return 0
    of_batch = col(ErasureRequest.id).startswith(f"{request.id.rpartition('-')[0]}-", autoescape=True)
    held = (of_batch, ErasureRequest.state == "needs_attention", ErasureRequest.attention_reason == MASS_DELETION)
    return s.exec(select(func.count()).select_from(ErasureRequest).where(*held)).one()


def lately_run(s: Session, most: int = 20) -> list[Run]:
    """Runs, newest first."""
    return list(s.exec(select(Run).order_by(col(Run.created_at).desc()).limit(most)))


def serving(s: Session) -> tuple[Deployment | None, list[ServingWorker]]:
    """The line's pointer, and its serving processes."""
    query = select(ServingWorker).where(ServingWorker.line == LINE).order_by(col(ServingWorker.started_at))
    return s.get(Deployment, LINE), list(s.exec(query))


def versions(s: Session) -> list[ModelVersion]:
    """Model versions, the newest generation first, those without one on top."""
    query = select(ModelVersion).where(ModelVersion.line == LINE)
    rows = s.exec(query.order_by(col(ModelVersion.created_at).desc()))
    return sorted(rows, key=lambda row: (row.generation is not None, -(row.generation or 0)))


def rollback_orders(s: Session, most: int = 5) -> list[RollbackOrder]:
    """Orders to go back to an older version, newest first."""
    return list(s.exec(select(RollbackOrder).order_by(col(RollbackOrder.ordered_at).desc()).limit(most)))


def tried_methods(s: Session) -> dict[str, list[Attempt]]:
    """Judged attempts of every run, by method."""
    found: dict[str, list[Attempt]] = {}
    for attempt in s.exec(select(Attempt).where(col(Attempt.verdict).is_not(None))):
        found.setdefault(attempt.method, []).append(attempt)
    return found


def certificate(s: Session, certificate_id: str) -> CertificateRecord | None:
    """A certificate's row."""
    return s.get(CertificateRecord, certificate_id) if fit_id(certificate_id) else None


def log_entries(s: Session) -> Sequence[str]:
    """Every entry of the log, in order."""
    return list(s.exec(select(LogLeaf.entry).order_by(col(LogLeaf.index))))


def _seen_by(client: Client) -> ColumnElement[bool]:
    return true() if client.sees_all else col(ErasureRequest.client_id) == client.id
