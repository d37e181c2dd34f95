"""The worker's metrics, read from the database at each scrape, so that they survive restarts and cannot drift.

Tested in `tests/service/console/test_worker_metrics.py`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from sqlmodel import Session, col, func, select

from audit.policy import load_policy
from service.banks import overview
from service.banks.overview import BankOverview
from service.banks.qualifications import newest_results
from service.callbacks import outbox
from service.console.durations import Durations, request_durations, stage_durations
from service.context import LINE, Context
from service.erasure.price import PURPOSES
from service.models import shadowing
from service.requests import doubts
from service.requests.states import ENDS, STATES
from service.store.engine import reading
from service.store.felt import Board
from service.store.tables import (
    Attempt,
    CallbackDelivery,
    Deployment,
    ErasureRequest,
    LogLeaf,
    ModelVersion,
    OpenLine,
    RequestEvent,
    Run,
    ServingWorker,
    WorkerLease,
)
from service.telemetry.catalog import WORKER

VERDICTS = ("PASSED", "FAILED", "UNDETERMINED")
VERSION_STATES = ("candidate", "spare", "active", "retired", "destroyed")
_DOUBTS = {doubts.ALIKE: "alike", doubts.UNNAMED: "unnamed", doubts.FEWER: "fewer"}
CALLBACK_STATES = (outbox.PENDING, outbox.DELIVERED, outbox.DISABLED, outbox.GIVEN_UP)

_REST = 20  # times as long as computing histograms took, nothing of the kind is computed

Labelled = Mapping[tuple[str, ...], float | None]
"""Values by label values; None: there is no such thing now, and no sample."""


class DatabaseCollector(Collector):
    """Queue, deadlines, durations, audits, banks, callbacks and heartbeats as database and disk have them now."""

    def __init__(self, context: Context, *, steady: Callable[[], float] = time.monotonic) -> None:
        self._context = context
        self._steady = steady
        self._ladder = load_policy(context.settings.policy).ladder
        self._board = Board(context.settings.training_board_path)
        self._lock = threading.Lock()  # of what is kept from one scrape to the next, below
        self._durations: tuple[object, dict[str, Durations]] = (None, {})
        self._rested_at = -math.inf

    def collect(self) -> Iterator[Metric]:
        """One family after the other, the database's in one read transaction."""
        now = self._context.now()
        with reading(self._context.engine) as s:
            values = {
                **_queue(s, now),
                **_run(s),
                **_audits(s, self._ladder),
                **_qualifications(s, self._ladder),
                **_shadow(s),
                **_models(s, now),
                **_callbacks(s),
            }
            histograms = self._kept_durations(s)
        values |= _signing(self._context)
        values |= {"expunge_training_time_seconds_total": self._board.spent()}
        values |= _banks(overview.overview(self._context), now)
        for name, measure in WORKER.items():
            if measure.kind == "histogram":
                yield _histogram(name, histograms[name])
                continue
            kind = CounterMetricFamily if measure.kind == "counter" else GaugeMetricFamily
            family = kind(name, measure.help, labels=measure.labels)
            for labels, value in values[name].items():
                if value is not None:
                    family.add_metric(labels, value)
            yield family

    def _kept_durations(self, s: Session) -> dict[str, Durations]:
        """Histograms over the whole history; computed anew after a move, in at most a twentieth of the time.

        A hundred thousand completed requests take seconds, and can wait for a minute or two.
        """
        state = s.exec(select(func.count(), func.max(RequestEvent.id)).select_from(RequestEvent)).one()
        with self._lock:
            began = self._steady()
            if self._durations[0] != state and began >= self._rested_at:
                found = {
                    "expunge_request_duration_seconds": request_durations(s),
                    "expunge_stage_duration_seconds": stage_durations(s),
                }
                self._durations = (state, found)
                ended = self._steady()
                self._rested_at = ended + _REST * (ended - began)
            return self._durations[1]


def _queue(s: Session, now: datetime) -> dict[str, Labelled]:
    is_open = col(ErasureRequest.state).not_in(ENDS)
    by_state = _counts(s, col(ErasureRequest.state), STATES)
    next_due, oldest = s.exec(
        select(func.min(ErasureRequest.due_at), func.min(ErasureRequest.received_at)).where(is_open)
    ).one()
    late = select(func.count()).select_from(ErasureRequest).where(is_open, ErasureRequest.due_at < now)
    stopped = select(RequestEvent.note, func.count()).where(
        RequestEvent.to_state == "needs_attention", col(RequestEvent.note).in_(_DOUBTS)
    )
    n_doubts = dict(s.exec(stopped.group_by(col(RequestEvent.note))).all())
    lease = s.get(WorkerLease, LINE)
    seen = lease.data_obstacle if lease is not None else None
    return {
        "expunge_data_obstacle": _one(None if seen is None else bool(seen)),
        "expunge_erased_people_returned": _one(lease.n_returned if lease is not None else None),
        "expunge_requests_set_aside_total": {(name,): n_doubts.get(sentence, 0) for sentence, name in _DOUBTS.items()},
        "expunge_requests": by_state,
        "expunge_requests_overdue": _one(s.exec(late).one()),
        "expunge_next_deadline_timestamp_seconds": _one(_unix(next_due)),
        "expunge_oldest_open_request_timestamp_seconds": _one(_unix(oldest)),
    }


def _run(s: Session) -> dict[str, Labelled]:
    open_line, lease = s.get(OpenLine, LINE), s.get(WorkerLease, LINE)
    run = s.get(Run, open_line.run_id) if open_line else None
    return {
        "expunge_run_started_timestamp_seconds": _one(_unix(run.created_at) if run else None),
        "expunge_run_progress_timestamp_seconds": _one(_unix(run.updated_at) if run else None),
        "expunge_worker_heartbeat_timestamp_seconds": _one(lease.heartbeat_at.timestamp() if lease else 0),
        "expunge_worker_waits_since_timestamp_seconds": (
            {(lease.waits_for,): _unix(lease.waits_since)} if lease and lease.waits_for else {}
        ),
    }


NO_FIGURES = ("bank_size", "qualification")
"""Checks that are neither a ratio nor a p-value: banks are told of by themselves, a qualification is there or not."""


def _audits(s: Session, ladder: Iterable[str]) -> dict[str, Labelled]:
    done = col(Attempt.verdict).is_not(None)
    counted = s.exec(
        select(Attempt.method, Attempt.verdict, func.count())
        .where(done)
        .group_by(col(Attempt.method), col(Attempt.verdict))
    )
    # zeros first: Prometheus sees no increase in a series that begins with 1
    audits: dict[tuple[str, ...], float | None] = {(m, v): 0 for m in ladder for v in VERDICTS}
    audits |= {(method, str(verdict)): count for method, verdict, count in counted}
    last_passed = select(func.coalesce(func.max(Attempt.id), 0)).where(Attempt.verdict == "PASSED").scalar_subquery()
    since = s.exec(select(func.count()).select_from(Attempt).where(done, col(Attempt.id) > last_passed)).one()
    newest = select(func.max(Attempt.id)).where(done).group_by(col(Attempt.method))
    at: dict[tuple[str, ...], float | None] = {}
    value: dict[tuple[str, ...], float | None] = {}
    bar: dict[tuple[str, ...], float | None] = {}
    for attempt in s.exec(select(Attempt).where(col(Attempt.id).in_(newest))):
        at[attempt.method,] = _unix(attempt.finished_at)
        for check in attempt.figures.get("checks", ()):
            if check["name"] not in NO_FIGURES:
                value[attempt.method, check["name"]] = _number(check["value"])
                bar[attempt.method, check["name"]] = _number(check["bar"]) if check["applicable"] else None
    return {
        "expunge_audits_total": audits,
        "expunge_trainings_total": _trainings(s),
        "expunge_audits_since_passed": _one(since),
        "expunge_audit_timestamp_seconds": at,
        "expunge_audit_check_value": value,
        "expunge_audit_check_bar": bar,
    }


def _trainings(s: Session) -> Labelled:
    """Trainings that runs caused, by purpose: the price of a run's last judged step is of the whole run."""
    spent = col(Attempt.figures)["price"]["trainings"]
    judged = select(Attempt.run_id, spent).where(col(Attempt.verdict).is_not(None)).order_by(col(Attempt.step))
    last = {run_id: by_purpose for run_id, by_purpose in s.exec(judged) if by_purpose}
    totals = dict.fromkeys(PURPOSES, 0.0)
    for by_purpose in last.values():
        for purpose, trainings in by_purpose.items():
            totals[purpose] += trainings
    return {(purpose.replace(" ", "_"),): total for purpose, total in totals.items()}


def _qualifications(s: Session, ladder: Iterable[str]) -> dict[str, Labelled]:
    """Of the ladder's methods only: what else somebody tried is no worry of the service's."""
    newest = newest_results(s)
    known = {method: newest[method] for method in ladder if method in newest}
    return {
        "expunge_qualification_passed": {(method,): float(bool(row.passed)) for method, row in known.items()},
        "expunge_qualification_expires_timestamp_seconds": {
            (method,): _unix(row.expires_at) if row.passed else None for method, row in known.items()
        },
    }


def _shadow(s: Session) -> dict[str, Labelled]:
    compared = shadowing.newest(s)
    predictions: dict[tuple[str, ...], float | None] = {}
    for place, figures in compared.counts.items() if compared else ():
        predictions[str(place), "all"] = figures.images
        if figures.is_told:
            predictions[str(place), "label_changed"] = figures.labels_changed
            predictions[str(place), "confidence_changed"] = figures.confidence_changed
            predictions[str(place), "failed"] = figures.failed
    return {
        "expunge_shadow_predictions": predictions,
        "expunge_shadow_timestamp_seconds": _one(_unix(compared.ended_at) if compared else None),
    }


def _models(s: Session, now: datetime) -> dict[str, Labelled]:
    deployment = s.get(Deployment, LINE)
    processes = list(s.exec(select(ServingWorker).where(ServingWorker.lease_until >= now)))
    behind = sum(
        deployment is not None and row.acknowledged_generation != deployment.committed_generation for row in processes
    )
    return {
        "expunge_active_generation": _one(deployment.committed_generation if deployment else -1),
        "expunge_model_versions": _counts(s, col(ModelVersion.state), VERSION_STATES),
        "expunge_serving_processes": _one(len(processes)),
        "expunge_serving_processes_behind": _one(behind),
        "expunge_log_entries": _one(s.exec(select(func.count()).select_from(LogLeaf)).one()),
    }


def _callbacks(s: Session) -> dict[str, Labelled]:
    waits = CallbackDelivery.status == outbox.PENDING
    oldest = s.exec(select(func.min(CallbackDelivery.created_at)).where(waits)).one()
    return {
        "expunge_callbacks": _counts(s, col(CallbackDelivery.status), CALLBACK_STATES),
        "expunge_oldest_pending_callback_timestamp_seconds": _one(_unix(oldest)),
    }


def _signing(context: Context) -> dict[str, Labelled]:
    rotate_by = context.keyring.signing.expires_at(context.settings.signing_key_days)
    return {"expunge_signing_key_rotate_by_timestamp_seconds": _one(rotate_by.timestamp())}


def _banks(banks: BankOverview, now: datetime) -> dict[str, Labelled]:
    oldest = max((block.age_seconds for block in banks.blocks if block.age_seconds is not None), default=None)
    return {
        "expunge_bank_blocks": {(state,): banks.count(state) for state in overview.STATES},
        "expunge_bank_models": _one(banks.n_models),
        "expunge_bank_models_wanted": _one(banks.n_wanted),
        "expunge_bank_staleness_ratio": _one(banks.staleness),
        "expunge_bank_oldest_timestamp_seconds": _one(None if oldest is None else now.timestamp() - oldest),
        "expunge_bank_size_bytes": _one(banks.size_bytes),
    }


def _counts(s: Session, column: Any, known: Iterable[str]) -> Labelled:
    """Rows by state, zero for those without any."""
    found = s.exec(select(column, func.count()).group_by(column)).all()
    return {**{(state,): 0 for state in known}, **{(str(state),): count for state, count in found}}


def _one(value: float | None) -> Labelled:
    return {(): value}


def _unix(at: datetime | None) -> float | None:
    return at.timestamp() if at is not None else None


def _number(figure: Any) -> float | None:
    """A figure as the audit's JSON has it: null for NaN, infinities as words."""
    return None if figure is None else float(figure)


def _histogram(name: str, durations: Durations) -> HistogramMetricFamily:
    measure = WORKER[name]
    family = HistogramMetricFamily(name, measure.help, labels=measure.labels)
    bounds = [*(str(bound) for bound in measure.buckets), "+Inf"]
    for label, (counts, total) in durations.items():
        family.add_metric((label,), list(zip(bounds, counts, strict=True)), total)
    return family


def exposition(collector: DatabaseCollector) -> tuple[bytes, str]:
    """Metrics in Prometheus' text format, and its content type."""
    registry = CollectorRegistry()
    registry.register(collector)
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
