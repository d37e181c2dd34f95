"""Pages that only read: requests by deadline, one request, runs, models, banks, methods."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from statistics import median
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from audit.policy import RETRAIN, load_policy
from service.banks.overview import overview
from service.banks.qualifications import Qualified
from service.console import comparisons, queries, views
from service.console.rendering import IDLE_MS, LIVE_MS, Pages, going_to
from service.console.sessions import Visitor, visitor_of
from service.context import Context
from service.erasure.ladder import steps
from service.erasure.workspace import stored_plan
from service.errors import NotFoundError
from service.keys import api_keys
from service.models import rollbacks, shadowing
from service.requests import views as readings
from service.requests.schemas import Ground, LegalReason, Regulation
from service.requests.states import ENDS
from service.store.engine import fit_id, reading
from service.store.tables import Attempt, ModelVersion, Run
from service.studies.method_catalog import standings
from service.training.data import recipe_of
from unlearning.errors import UnlearningError
from unlearning.methods import METHODS

At = Annotated[Visitor, Depends(visitor_of)]
DONE = {
    "cancelled": "Cancelled. The request will not be carried out.",
    "extended": "Extended. The new deadline is shown below.",
    "approved": "Approved. The request goes on.",
    "rejected": "Rejected. The request is closed.",
}


def add_reading_pages(router: APIRouter, context: Context, pages: Pages) -> None:
    """The routes."""
    _add_requests(router, context, pages)
    _add_runs(router, context, pages)
    _add_stock(router, context, pages)


def _add_requests(router: APIRouter, context: Context, pages: Pages) -> None:
    @router.get("/")
    def requests(request: Request, visitor: At, search: Annotated[queries.Search, Query()]) -> Response:
        now, client = context.now(), visitor.client
        with reading(context.engine) as s:
            rows, more = queries.by_deadline(s, client, search, now)
            counts = queries.overview(s, client, now)
            ended = [] if search.is_narrow else queries.lately_ended(s, client)
            run = queries.open_run(s) if client.sees_all else None
        if search.id.strip() and len(rows) == 1 and not more and search.page == 1:
            return going_to(request, f"/requests/{rows[0].id}")
        return pages.page(
            request, visitor, "requests.html", poll_ms=LIVE_MS if run else IDLE_MS, requests=rows, more=more,
            search=search, overview=counts, ended=ended, run=run, open_states=queries.OPEN,
            progress=views.progress_of(run.stage_note) if run else None, told=partial(readings.reason_for, client),
        )  # fmt: skip

    @router.get("/requests/{request_id}")
    def one_request(request: Request, visitor: At, request_id: str, done: str = "") -> Response:
        return request_page(request, visitor, context, pages, request_id, said=DONE.get(done, ""))


def request_page(
    request: Request, visitor: Visitor, context: Context, pages: Pages, request_id: str, *, said: str = "",
    refused: str = "", status: int = 200,
) -> Response:  # fmt: skip
    """One request, with a word on what was just done to it or why that was refused."""
    now, client = context.now(), visitor.client
    with reading(context.engine) as s:
        row = readings.visible(s, client, request_id)
        view = readings.detail(s, client, row, now=now)
        events = queries.events_of(s, row.id)
        run = s.get(Run, row.run_id) if row.run_id and client.sees_all else None
        attempts = queries.attempts_of(s, run.id) if run else []
        n_held = queries.n_held_with(s, row)
    is_open = row.state not in ENDS
    is_pending = any(callback.status == "pending" for callback in view.callbacks)
    is_held = row.state == "needs_attention"
    return pages.page(
        request, visitor, "request.html", status=status, erasure=view, is_open=is_open, run=run, n_held=n_held,
        poll_ms=LIVE_MS if is_open else IDLE_MS if is_pending else 0,
        timeline=views.timeline(events, now, partial(readings.note_for, client)),
        rungs=_rungs(context, run, attempts), methods=METHODS,
        progress=views.progress_of(view.progress), said=said, refused=refused, reasons=LegalReason.__args__,  # type: ignore[attr-defined]
        may_cancel=visitor.files and view.cancellable,
        may_approve=visitor.decides and is_held, may_reject=visitor.decides and (is_held or row.state == "queued"),
        may_extend=visitor.decides and is_open and view.extension_reason is None and not view.overdue,
    )  # fmt: skip


def _rungs(context: Context, run: Run | None, attempts: Sequence[Attempt]) -> list[views.Rung]:
    """The ladder of a run; if the policy in force is another than the run's, only what was tried."""
    if run is None:
        return []
    policy = load_policy(context.settings.policy)
    tried: tuple[str, ...] = ()
    if policy.digest == run.policy_digest and run.base_digest:
        plan = stored_plan(context.settings, run.id) or {}
        tried = steps(policy, [rung["method"] for rung in plan.get("order", [])])
    return views.ladder(tried, attempts, run, context.now())


def _add_runs(router: APIRouter, context: Context, pages: Pages) -> None:
    @router.get("/runs/{run_id}")
    def one_run(request: Request, visitor: At, run_id: str) -> Response:
        visitor.client.demand(api_keys.AUDIT, api_keys.ADMIN)
        with reading(context.engine) as s:
            run = s.get(Run, run_id) if fit_id(run_id) else None
            if run is None:
                raise NotFoundError("There is no run with this number.")
            attempts = queries.attempts_of(s, run.id)
            members = queries.requests_of_run(s, run.id)
            compared, base = shadowing.find(s, run.id), s.get(ModelVersion, run.base_digest)
        classes = (base.manifest if base else {}).get("classes", ())
        is_open = run.finished_at is None
        took = views.span(((run.finished_at or context.now()) - run.created_at).total_seconds())
        return pages.page(
            request, visitor, "run.html", poll_ms=LIVE_MS if is_open else 0, run=run, is_open=is_open, members=members,
            rungs=_rungs(context, run, attempts), methods=METHODS, progress=views.progress_of(run.stage_note),
            stages=views.stages(run.stage, finished=not is_open), took=took, compared=compared,
            compared_rows=views.shadow_rows(compared.counts, classes) if compared else (), moved=shadowing.MOVED,
        )  # fmt: skip

    @router.get("/runs")
    def runs(request: Request, visitor: At) -> Response:
        visitor.client.demand(api_keys.AUDIT, api_keys.ADMIN)
        with reading(context.engine) as s:
            rows, open_run, waiting = queries.lately_run(s), queries.open_run(s), queries.waiting_worker(s)
        return pages.page(
            request, visitor, "runs.html", poll_ms=LIVE_MS if open_run else IDLE_MS, runs=rows,
            progress=views.progress_of(open_run.stage_note) if open_run else None, waiting=waiting,
        )  # fmt: skip


def _add_stock(router: APIRouter, context: Context, pages: Pages) -> None:
    @router.get("/models")
    def models(request: Request, visitor: At) -> Response:
        visitor.client.demand(api_keys.AUDIT, api_keys.ADMIN)
        return models_page(request, visitor, context, pages)

    @router.get("/banks")
    def banks(request: Request, visitor: At) -> Response:
        visitor.client.demand(api_keys.AUDIT, api_keys.ADMIN)
        with reading(context.engine) as s:
            run = queries.open_run(s)
        return pages.page(
            request, visitor, "banks.html", poll_ms=LIVE_MS, banks=overview(context), run=run,
            progress=views.progress_of(run.stage_note) if run else None, policy=load_policy(context.settings.policy),
        )  # fmt: skip

    @router.get("/methods")
    def methods(request: Request, visitor: At) -> Response:
        visitor.client.demand(api_keys.AUDIT, api_keys.ADMIN)
        policy = load_policy(context.settings.policy)
        with reading(context.engine) as s:
            tried = queries.tried_methods(s)
        standing = _standings(context)
        rows = {name: _method_row(name, tried.get(name, []), standing.get(name)) for name in METHODS}
        return pages.page(
            request, visitor, "methods.html", policy=policy, bars=views.bars(policy),
            comparison=comparisons.latest(context.settings),
            rungs=[
                (name, rows[name], policy.level_at(i, policy.gate_alpha or policy.exchangeability_alpha))
                for i, name in enumerate(policy.ladder)
                if name in rows
            ],
            others=[(name, row) for name, row in rows.items() if name not in policy.ladder], retrain=RETRAIN,
        )  # fmt: skip


def models_page(
    request: Request, visitor: Visitor, context: Context, pages: Pages, *, refused: str = "", status: int = 200
) -> Response:
    """Model versions, with a word on why going back to one was refused."""
    with reading(context.engine) as s:
        versions, orders = queries.versions(s), queries.rollback_orders(s)
        pointer, workers = queries.serving(s)
        allowed = {row.digest for row in versions if rollbacks.refusal(s, context, row) is None}
    return pages.page(
        request, visitor, "models.html", status=status, poll_ms=LIVE_MS, versions=versions, workers=workers,
        pointer=pointer, orders=orders, allowed=allowed, refused=refused,
    )  # fmt: skip


def _standings(context: Context) -> dict[str, Qualified | str]:
    """Which methods are qualified; nothing if data, recipe or tuned settings cannot be read: other pages tell of it."""
    with suppress(UnlearningError):
        return standings(context, recipe_of(context), METHODS)
    return {}


def _method_row(name: str, attempts: Sequence[Attempt], standing: Qualified | str | None) -> dict[str, Any]:
    """A method with what this service saw of it, and whether it is qualified (none: exact, or nobody knows)."""
    method = METHODS[name]
    shares = [share for a in attempts if (share := (a.figures or {}).get("cost_share")) is not None]
    first = (sys.modules[method.function.__module__].__doc__ or "").strip().split("\n\n")[0]
    _, _, idea = " ".join(first.split()).partition(": ")
    return {
        "title": method.title,
        "source": method.source,
        "idea": idea[:1].upper() + idea[1:],
        "needs_forget": method.needs_forget,
        "exact": method.exact,
        "cost": median(shares) if shares else None,
        "n_tried": len(attempts),
        "n_passed": sum(attempt.verdict == "PASSED" for attempt in attempts),
        "standing": standing,
    }


REGULATIONS: tuple[str, ...] = Regulation.__args__  # type: ignore[attr-defined]
GROUNDS: tuple[str, ...] = Ground.__args__  # type: ignore[attr-defined]
