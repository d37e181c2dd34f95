"""The worker's metrics, read from the database at each scrape, so that they survive restarts and cannot drift."""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector
from sqlmodel import col, select

from service.context import LINE, Context
from service.db import reading
from service.states import STATES
from service.tables import Attempt, Deployment, ErasureRequest, ServingWorker, WorkerLease

OPEN = tuple(state for state in STATES if state not in ("completed", "cancelled", "rejected"))


class DatabaseCollector(Collector):
    """Queue, deadlines, audits, generations and the worker's heartbeat as the database has them now."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def collect(self) -> Iterator[Metric]:
        """One family after the other, in one read transaction."""
        now = self._context.now()
        with reading(self._context.engine) as s:
            by_state = dict(s.exec(select(ErasureRequest.state, sa.func.count()).group_by(ErasureRequest.state)).all())
            is_open = col(ErasureRequest.state).in_(OPEN)
            next_due = s.exec(select(sa.func.min(ErasureRequest.due_at)).where(is_open)).one()
            late = select(sa.func.count()).select_from(ErasureRequest).where(is_open, ErasureRequest.due_at < now)
            n_late = s.exec(late).one()
            audits = s.exec(
                select(Attempt.method, Attempt.verdict, sa.func.count())
                .where(col(Attempt.verdict).is_not(None))
                .group_by(col(Attempt.method), col(Attempt.verdict))
            ).all()
            deployment, lease = s.get(Deployment, LINE), s.get(WorkerLease, LINE)
            workers = list(s.exec(select(ServingWorker).where(ServingWorker.lease_until >= now)))

        requests = GaugeMetricFamily("expunge_requests", "Erasure requests by state.", labels=["state"])
        for state in STATES:
            requests.add_metric([state], by_state.get(state, 0))
        yield requests
        yield GaugeMetricFamily("expunge_requests_overdue", "Open requests past their legal deadline.", n_late)
        remaining = (next_due - now).total_seconds() if next_due else float("nan")
        yield GaugeMetricFamily(
            "expunge_next_deadline_seconds",
            "Time left to the nearest deadline of an open request; NaN: none.",
            remaining,
        )
        family = CounterMetricFamily("expunge_audits", "Audits by method and verdict.", labels=["method", "verdict"])
        for method, verdict, count in audits:
            family.add_metric([method, str(verdict)], count)
        yield family
        yield GaugeMetricFamily(
            "expunge_active_generation", "Generation in service; -1: none.",
            deployment.committed_generation if deployment else -1,
        )  # fmt: skip
        behind = sum(
            deployment is not None and w.acknowledged_generation != deployment.committed_generation for w in workers
        )
        yield GaugeMetricFamily("expunge_serving_processes", "Serving processes with a fresh lease.", len(workers))
        yield GaugeMetricFamily(
            "expunge_serving_processes_behind", "Of these, how many answer with another generation.", behind
        )
        yield GaugeMetricFamily(
            "expunge_worker_heartbeat_timestamp_seconds", "Unix time of the worker's last heartbeat; 0: never.",
            lease.heartbeat_at.timestamp() if lease else 0,
        )  # fmt: skip


def exposition(context: Context) -> tuple[bytes, str]:
    """Metrics in Prometheus' text format, and its content type."""
    registry = CollectorRegistry()
    registry.register(DatabaseCollector(context))
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
