"""The unlearning worker: one process a model line, apart from the serving processes.

It holds the line's lease (a second worker refuses to start), claims waiting requests into runs, and lets DBOS carry
each run through `pipeline.py`. The run row is committed first and the workflow started under the same id; on start
every open run without a workflow is started, so nothing is written in two places that could disagree.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import psutil
import sqlalchemy as sa
import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID
from sqlmodel import Session, col, select

from audit.policy import Policy
from service import deployment, head_count, intake, ledger, leftovers, registry, rollbacks, runs, states, stored_banks
from service.barrier import this_host
from service.console.listener import Listener
from service.context import LINE, Context, utc_now
from service.data_folder import Watch
from service.db import reading, session
from service.errors import StartupError
from service.pipeline import Pipeline, abandon
from service.rebuilding import Rebuilder
from service.reruns import announcement
from service.settings import Settings
from service.tables import Deployment, ErasureRequest, OpenLine, Run, WorkerLease
from service.tracing import Traces
from service.trials import yield_processor
from service.webhooks import Deliverer

log = structlog.get_logger()

TIDY_SECONDS = 600.0  # between two looks for what has expired
_DISTURBED_SECONDS = 1.0
_STOPPED = "The run stopped and could not record why; see the worker's log."
_ENDED = {  # by status of the workflow, why a human must look
    "SUCCESS": _STOPPED,
    "ERROR": _STOPPED,
    "CANCELLED": "The run's workflow was cancelled.",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "The run ended its worker too many times; see the worker's log.",
}

WORKFLOW_VERSION = "2"  # set by hand: an upgrade that changes no step order still resumes open runs


class Lease:
    """The right to work on a model line: two workers never write one run.

    On one machine it is a lock of the kernel on a file of the home, gone with the process however it ends. Among
    machines it is a row, renewed by a thread of its own; a worker that was replaced, or could not renew the row for as
    long as the lease runs, ends at once. Whether a row of another machine is still renewed is watched on our own steady
    clock, not read off two wall clocks, either of which may have been set back.
    """

    def __init__(
        self,
        context: Context,
        seconds: float = 10.0,
        *,
        steady: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._context = context
        self._seconds = seconds
        self._steady = steady
        self._sleep = sleep
        self._holder = secrets.token_hex(8)
        self._token = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="worker-lease", daemon=True)

    def __enter__(self) -> Lease:
        self._file = (self._context.settings.home / "worker.lock").open("ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise self._refusal(self._row()) from None
        try:
            self._token = self._take()
        except BaseException:
            self._file.close()
            raise
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with session(self._context.engine) as s:
            row = s.get(WorkerLease, LINE)
            if row is not None and row.holder == self._holder:
                row.lease_until = self._context.now() - timedelta(seconds=1)
                s.add(row)
                s.commit()
        self._file.close()

    def _row(self) -> WorkerLease | None:
        with reading(self._context.engine) as s:
            return s.get(WorkerLease, LINE)

    def _refusal(self, row: WorkerLease | None) -> StartupError:
        who = f"process {row.pid} on {row.host}, last heard of at {row.heartbeat_at:%H:%M:%S} UTC" if row else "one"
        return StartupError(f"Expected no other worker on model line {LINE!r}, found {who}; stop it first.")

    def _take(self) -> int:
        before = self._row()
        if before is not None and before.host != this_host() and before.lease_until > self._context.now():
            self._watch(before)
        with session(self._context.engine) as s:
            row = s.get(WorkerLease, LINE, with_for_update=True)  # of two at once, one sees what the other wrote
            if (row and row.fencing_token) != (before and before.fencing_token):
                raise self._refusal(row)
            now, token = self._context.now(), (row.fencing_token if row else 0) + 1
            fresh = WorkerLease(
                line=LINE, holder=self._holder, host=this_host(), pid=os.getpid(), fencing_token=token,
                heartbeat_at=now, lease_until=now + timedelta(seconds=self._seconds),
            )  # fmt: skip
            s.merge(fresh)
            s.commit()
        return token

    def _watch(self, before: WorkerLease) -> None:
        """Wait one lease long for a sign of life.

        Raises:
            StartupError: there was one.
        """
        until = self._steady() + self._seconds
        while self._steady() < until:
            self._sleep(self._seconds / 10)
            row = self._row()
            if row is None or row.lease_until <= self._context.now():
                return
            if (row.heartbeat_at, row.fencing_token) != (before.heartbeat_at, before.fencing_token):
                raise self._refusal(row)

    def _renew(self) -> None:
        renewed_at = self._steady()
        while not self._stop.wait(self._seconds / 4):
            began = self._steady()
            try:
                is_ours = self._renew_once()
            except sa.exc.SQLAlchemyError as error:  # the database restarts, or its disk is full
                log.error("worker.lease_not_renewed", error=type(error).__name__)
                is_ours = self._steady() - renewed_at < self._seconds
            else:
                renewed_at = began
            if not is_ours:
                log.error("worker.lease_lost")
                os.kill(os.getpid(), signal.SIGKILL)
                return

    def _renew_once(self) -> bool:
        now = self._context.now()
        with session(self._context.engine) as s:
            row = s.get(WorkerLease, LINE)
            if row is None or (row.fencing_token, row.holder) != (self._token, self._holder):
                return False
            row.heartbeat_at = now
            row.lease_until = now + timedelta(seconds=self._seconds)
            s.add(row)
            s.commit()
        return True


def is_alive(pid: int) -> bool:
    """Whether a process of this machine runs; a zombie does not."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


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
        .order_by(col(ErasureRequest.received_at))
        .limit(most)
    )  # fmt: skip
    return list(s.exec(query))


def work(context: Context, policy: Policy, stop: threading.Event) -> None:
    """Claim and carry out runs until `stop` is set; a step that is under way then is finished by the next start."""
    settings = context.settings
    with Lease(context), Listener(context), Deliverer(context):
        if settings.jobs == 1:  # training is done in this process; else its children yield, and this one never waits
            yield_processor()
        leftovers.sweep(context)
        _settle_storage(context)
        traces = Traces.open(settings, "worker")
        pipeline = _launch(context, policy, traces)
        log.info("worker.ready", home=str(settings.home), policy=policy.name)
        tidy_at, watch = time.monotonic(), Watch(context)
        with Rebuilder(context) as rebuilder:
            while not stop.is_set():
                try:
                    if time.monotonic() >= tidy_at:
                        intake.forget_old_answers(context)
                        head_count.write_down(context)
                        leftovers.sweep(context)
                        tidy_at += TIDY_SECONDS
                    watch.tend()
                    rollbacks.carry_out(context)  # before a claim: only between two runs
                    if claim(context, policy):
                        context.reached("claimed")
                    # before a run starts, which will destroy what the child reads; and never from half the people
                    rebuilder.tend(busy=is_busy(context) or bool(watch.obstacle))
                    start_open_run(context, pipeline)
                except (sa.exc.SQLAlchemyError, OSError) as error:  # the database restarts, or the disk is full
                    log.error("worker.disturbed", error=type(error).__name__)
                    stop.wait(_DISTURBED_SECONDS)
                stop.wait(settings.poll_seconds)
        DBOS.destroy(workflow_completion_timeout_sec=0)
        traces.close()


def _settle_storage(context: Context) -> None:
    """What this home lacks comes from the shared storage; the active weights are there for serving processes."""
    if n_fetched := stored_banks.bring_here(context):
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
    status = DBOS.get_workflow_status(workflow_id)
    if status is None:
        with SetWorkflowID(workflow_id):
            DBOS.start_workflow(pipeline.erase if run.purge is None else pipeline.finish, run.id)
    elif status.status in _ENDED:
        now = _open_run(context)  # it may have ended well, or asked for help, just now
        if now is not None and (now.id, now.n_resumptions) == (run.id, run.n_resumptions) and now.stage == run.stage:
            log.error("run.abandoned", run_id=run.id, workflow=status.status)
            abandon(context, run.id, _ENDED[status.status])


def _open_run(context: Context) -> Run | None:
    with reading(context.engine) as s:
        open_line = s.get(OpenLine, LINE)
        return runs.get_run(s, open_line.run_id) if open_line is not None else None


def _launch(context: Context, policy: Policy, traces: Traces) -> Pipeline:
    config: DBOSConfig = {
        "name": "expunge",
        "system_database_url": context.settings.effective_workflow_database_url,
        "application_version": WORKFLOW_VERSION,
        "executor_id": LINE,  # the line's worker, wherever it runs, resumes the line's runs
        "log_level": "ERROR",
    }
    DBOS(config=config)
    pipeline = Pipeline(context, policy, traces)
    DBOS.launch()  # resumes what a killed worker left
    return pipeline


def run_worker(settings: Settings, policy: Policy, now: Callable[[], datetime] = utc_now) -> None:
    """The worker process: until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    work(replace(Context.open(settings), now=now), policy, stop)
