"""The unlearning worker: one process a model line, apart from the serving processes.

It holds the line's lease (a second worker refuses to start), claims waiting requests into runs, and lets DBOS carry
each run through `pipeline.py`. The run row is committed first and the workflow started under the same id; on start
every open run without a workflow is started, so nothing is written in two places that could disagree.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from importlib import metadata

import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID, WorkflowStatus
from sqlalchemy.exc import DBAPIError
from sqlmodel import Session, col, select

from audit.policy import Policy
from service.banks import replica
from service.banks.refresh import Rebuilder
from service.callbacks.delivery import Deliverer
from service.console.listener import Listener
from service.context import LINE, Context, utc_now
from service.erasure import evidence, leftovers
from service.erasure.deadlines import Deadlines
from service.erasure.lease import LineLease
from service.erasure.pipeline import Pipeline, abandon
from service.erasure.reruns import announcement
from service.erasure.waiting import Waiting
from service.errors import ExpungeError, StartupError
from service.models import deployment, registry, rollbacks
from service.requests import head_count, intake, runs, states
from service.requests.data_folder import Watch
from service.settings import Settings
from service.store import ledger
from service.store.engine import make_fit, reading, session
from service.store.tables import Deployment, ErasureRequest, OpenLine, Run
from service.telemetry.redact import describe
from service.telemetry.tracing import Traces
from service.training.governor import train_for
from service.training.parallel import jobs_of

log = structlog.get_logger()

TIDY_SECONDS = 600.0  # between two looks for what has expired
_STOPPED = "The run stopped and could not record why; see the worker's log."
_ENDED = {  # by status of the workflow, why a human must look
    "SUCCESS": _STOPPED,
    "ERROR": _STOPPED,
    "CANCELLED": "The run's workflow was cancelled.",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "The run ended its worker too many times; see the worker's log.",
}

WORKFLOW_VERSION = "3"  # set by hand when the order of steps changes: open runs of another version begin anew
_UNDER_WAY = ("PENDING", "ENQUEUED", "DELAYED")  # statuses of a workflow that DBOS itself goes on with


def claim(context: Context, policy: Policy) -> str | None:
    """Put the requests that wait into a new run, or give None if there are none or a run is open.

    The run, its place as the line's only open run, the policy's entry in the log and the requests' move to `unlearning`
    are one transaction.
    """
    now, settings = context.now(), context.settings
    with reading(context.engine) as s:
        if not _waiting(s, now, 1):  # most polls end here, without a write lock
            return None
    with session(context.engine) as s:
        if s.get(OpenLine, LINE) is not None:
            return None
        waiting = _waiting(s, now, settings.batch_size)
        if not waiting:
            return None
        oldest = min(request.hold_until for request in waiting)
        window = timedelta(seconds=settings.batch_window_seconds)
        if len(waiting) < settings.batch_size and oldest + window > now:
            return None
        pointer = s.get(Deployment, LINE)
        run = Run(
            id=context.new_id(), line=LINE, stage="unlearning", policy_digest=policy.digest, seed=secrets.randbits(31),
            base_digest=pointer.committed_digest if pointer else "", created_at=now, updated_at=now,
        )  # fmt: skip
        s.add(run)
        s.add(OpenLine(line=LINE, run_id=run.id))
        ledger.record(
            s, "policy", now=now, run_id=run.id, policy=policy.name, policy_digest=policy.digest, seed=run.seed,
            **announcement(context),
        )  # fmt: skip
        states.move_all(s, [(request, {"run_id": run.id}) for request in waiting], "unlearning", now=now)
        s.commit()
        log.info("run.claimed", run_id=run.id, erasure_ids=[request.id for request in waiting])
        return run.id


def _waiting(s: Session, now: datetime, most: int) -> list[ErasureRequest]:
    query = (
        select(ErasureRequest)
        .where(
            ErasureRequest.state == "queued",
            ErasureRequest.hold_until <= now,
            col(ErasureRequest.legal_hold).is_(False),
            col(ErasureRequest.linked_request_id).is_(None),  # a follower moves with the request it follows
        )
        .order_by(col(ErasureRequest.due_at), col(ErasureRequest.filed_at))
        .limit(most)
    )  # fmt: skip
    return list(s.exec(query))


def work(context: Context, policy: Policy, stop: threading.Event, rng: random.Random | None = None) -> None:
    """Claim and carry out runs until `stop` is set; a step that is under way then is finished by the next start.

    What fails outside of this program is waited for, also at the start; see `service.erasure.waiting`. No run is
    resumed before what its steps rely on was there once.
    """
    settings = context.settings
    with LineLease(context), Listener(context), Deliverer(context), Rebuilder(context) as rebuilder:
        traces = Traces.open(settings, "worker")
        pipeline, waiting = Pipeline(context, policy, traces), Waiting(context, rng or random.Random())
        tidy_at, watch, deadlines = time.monotonic(), Watch(context), Deadlines(context)
        train_for("erasures")

        def begin() -> None:
            leftovers.sweep(context)
            _settle_storage(context)
            launch(settings)
            jobs = jobs_of(settings)
            log.info(
                "worker.ready", home=str(settings.home), policy=policy.name, training_processes=jobs.n, why=jobs.why
            )

        def turn() -> None:
            nonlocal tidy_at
            if time.monotonic() >= tidy_at:
                intake.forget_old_answers(context)
                head_count.write_down(context)
                leftovers.sweep(context)
                evidence.forget_old_reports(context)
                tidy_at += TIDY_SECONDS
            watch.tend()
            deadlines.tend()
            rollbacks.carry_out(context)  # before a claim: only between two runs
            if claim(context, policy):
                context.reached("claimed")
            # before a run starts, which will destroy what the child reads; and never from half the people
            rebuilder.tend(busy=is_busy(context) or bool(watch.obstacle))
            start_open_run(context, pipeline)

        try:
            while not stop.is_set() and (rest := waiting.attempt(begin)):
                stop.wait(rest)
            while not stop.is_set():
                stop.wait(waiting.attempt(turn) or settings.poll_seconds)
        finally:
            DBOS.destroy(workflow_completion_timeout_sec=0)
            traces.close()


def _settle_storage(context: Context) -> None:
    """What this home lacks comes from the shared storage; the active weights are there for serving processes."""
    if n_fetched := replica.bring_here(context):
        log.info("banks.fetched", n_banks=n_fetched)
    pointer = deployment.pointer(context)
    if pointer is not None and pointer.committed_digest:
        registry.publish(context, pointer.committed_digest)


def is_busy(context: Context) -> bool:
    """Whether the line has an open run, or a request that will be one in a moment."""
    with reading(context.engine) as s:
        return s.get(OpenLine, LINE) is not None or bool(_waiting(s, context.now(), 1))


def start_open_run(context: Context, pipeline: Pipeline) -> None:
    """Start the workflow of the open run if it has none; DBOS itself resumes the one that has.

    A workflow that ended while its run is open could not even say so (its disk was full), or took the worker down with
    it again and again: then a human must look. A run that waits for a human with its purge begun has none until then.
    """
    run = _open_run(context)
    if run is None or run.stage == "needs_attention":
        return
    workflow_id = runs.workflow_id(run)
    status = workflow_status(workflow_id)
    if status is None:
        with SetWorkflowID(workflow_id):
            DBOS.start_workflow(pipeline.erase, run.id)
    elif status.status not in _UNDER_WAY:
        now = _open_run(context)  # it may have ended well, or asked for help, just now
        if now is not None and (now.id, now.n_resumptions) == (run.id, run.n_resumptions) and now.stage == run.stage:
            log.error("run.abandoned", run_id=run.id, workflow=status.status)
            abandon(context, run.id, _ENDED.get(status.status, _STOPPED))


def workflow_status(workflow_id: str) -> WorkflowStatus | None:
    """What DBOS has of a workflow; none also if another version of this program or of DBOS began it: it begins anew.

    DBOS resumes what its own version began and leaves the rest as it is, for ever. A workflow that begins anew takes up
    the stage that its run is in, whose steps may be repeated; nobody else is at it, since this worker has the line.
    """
    status = DBOS.get_workflow_status(workflow_id)
    if status is None or status.status not in _UNDER_WAY or status.app_version == workflow_version():
        return status
    log.warning("run.begins_anew", workflow=workflow_id, version=workflow_version(), begun_by=status.app_version)
    DBOS.delete_workflow(workflow_id)
    return None


def workflow_version() -> str:
    """Version of what is recorded of a workflow: the order of our steps, and the DBOS that would replay them."""
    return f"{WORKFLOW_VERSION} dbos {metadata.version('dbos')}"


def _open_run(context: Context) -> Run | None:
    with reading(context.engine) as s:
        open_line = s.get(OpenLine, LINE)
        return runs.get_run(s, open_line.run_id) if open_line is not None else None


def launch(settings: Settings) -> None:
    """Durable execution: what a killed worker left goes on."""
    url = settings.effective_workflow_database_url
    make_fit(url, "EXPUNGE_WORKFLOW_DATABASE_URL")
    config: DBOSConfig = {
        "name": "expunge",
        "system_database_url": url,
        "application_version": workflow_version(),
        "executor_id": LINE,  # the line's worker, wherever it runs, resumes the line's runs
        "log_level": "ERROR",
    }
    DBOS(config=config)
    try:
        DBOS.launch()
    except BaseException:
        DBOS.destroy(workflow_completion_timeout_sec=0)  # the next try begins anew
        raise


def run_worker(settings: Settings, policy: Policy, now: Callable[[], datetime] = utc_now) -> None:
    """The worker process: until SIGTERM or SIGINT, or an error of the program, which is told by kind and place.

    The process ends here, and with it the step that a thread of DBOS may be in: the interpreter would wait until that
    is done, without the lease that it needs.

    Raises:
        StartupError: the policy has a bar on figures that the settings let nobody measure.
    """
    if policy.shadow_changed_max and not settings.shadow_seconds:
        raise StartupError(
            f"Expected EXPUNGE_SHADOW_SECONDS above 0, since the policy {policy.name} has a bar on changed labels of "
            "live predictions (shadow_changed_max); set it, or take the bar out of the policy."
        )
    stop, status = threading.Event(), 0
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        context = replace(Context.open(settings), now=now)
        with suppress(DBAPIError):  # one that is away is waited for
            make_fit(settings.effective_workflow_database_url, "EXPUNGE_WORKFLOW_DATABASE_URL")
        work(context, policy, stop)
    except ExpungeError:
        raise
    except Exception as error:
        log.critical("worker.failed", error=describe(error))
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
