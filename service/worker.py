"""The unlearning worker: one process a model line, apart from the serving processes.

It holds the line's lease (a second worker refuses to start), claims waiting requests into runs, and lets DBOS carry
each run through `pipeline.py`. The run row is committed first and the workflow started under the same id; on start
every open run without a workflow is started, so nothing is written in two places that could disagree.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path

import psutil
import structlog
from dbos import DBOS, DBOSConfig, SetWorkflowID
from sqlmodel import Session, col, select

from audit.policy import Policy
from service import ledger, states
from service.console.listener import Listener
from service.context import LINE, Context
from service.db import reading, session
from service.errors import StartupError
from service.pipeline import Pipeline
from service.rebuilding import Rebuilder
from service.reruns import announcement
from service.settings import Settings
from service.tables import Deployment, ErasureRequest, OpenLine, Run, WorkerLease
from service.webhooks import Deliverer

log = structlog.get_logger()

WORKFLOW_VERSION = "2"  # set by hand: an upgrade that changes no step order still resumes open runs


class Lease:
    """The right to work on a model line, renewed by a thread of its own.

    A worker that lost it (its machine slept, another took over) ends at once: two workers never write one run.
    """

    def __init__(self, context: Context, seconds: float = 10.0) -> None:
        self._context = context
        self._seconds = seconds
        self._holder = secrets.token_hex(8)
        self._token = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="worker-lease", daemon=True)

    def __enter__(self) -> Lease:
        self._token = self._take()
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

    def _take(self) -> int:
        now, host = self._context.now(), socket.gethostname()
        with session(self._context.engine) as s:
            row = s.get(WorkerLease, LINE)
            if row is not None and row.lease_until > now and (row.host != host or is_alive(row.pid)):
                raise StartupError(
                    f"Expected no other worker on model line {LINE!r}, found process {row.pid} on {row.host}, "
                    f"last heard of at {row.heartbeat_at:%H:%M:%S} UTC; stop it first."
                )
            token = (row.fencing_token if row else 0) + 1
            fresh = WorkerLease(
                line=LINE, holder=self._holder, host=host, pid=os.getpid(), fencing_token=token, heartbeat_at=now,
                lease_until=now + timedelta(seconds=self._seconds),
            )  # fmt: skip
            s.merge(fresh)
            s.commit()
        return token

    def _renew(self) -> None:
        while not self._stop.wait(self._seconds / 4):
            now = self._context.now()
            with session(self._context.engine) as s:
                row = s.get(WorkerLease, LINE)
                if row is None or row.fencing_token != self._token:
                    log.error("worker.lease_lost")
                    os.kill(os.getpid(), signal.SIGKILL)
                    return
                row.heartbeat_at = now
                row.lease_until = now + timedelta(seconds=self._seconds)
                s.add(row)
                s.commit()


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
        deployment = s.get(Deployment, LINE)
        run = Run(
            id=context.new_id(), line=LINE, stage="unlearning", policy_digest=policy.digest, seed=secrets.randbits(31),
            base_digest=deployment.committed_digest if deployment else "", created_at=now, updated_at=now,
        )  # fmt: skip
        s.add(run)
        s.add(OpenLine(line=LINE, run_id=run.id))
        ledger.record(
            s, "policy", now=now, run_id=run.id, policy=policy.name, policy_digest=policy.digest, seed=run.seed,
            **announcement(context),
        )  # fmt: skip
        for request in waiting:
            states.move(s, request, "unlearning", now=now, run_id=run.id)
        s.commit()
        log.info("run.claimed", run_id=run.id, n_requests=len(waiting))
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
        _yield_processor()
        pipeline = _launch(context, policy)
        log.info("worker.ready", home=str(settings.home), policy=policy.name)
        with Rebuilder(context) as rebuilder:
            while not stop.is_set():
                claim(context, policy)
                rebuilder.tend(busy=is_busy(context))  # before a run starts: it will destroy what the child reads
                start_open_run(context, pipeline)
                stop.wait(settings.poll_seconds)
        DBOS.destroy(workflow_completion_timeout_sec=0)


def is_busy(context: Context) -> bool:
    """Whether the line has an open run, or a request that will be one in a moment."""
    with reading(context.engine) as s:
        return s.get(OpenLine, LINE) is not None or bool(_waiting(s, context.now(), 1))


def start_open_run(context: Context, pipeline: Pipeline) -> None:
    """Start the workflow of the open run if it has none; DBOS itself resumes the one that has."""
    with reading(context.engine) as s:
        open_line = s.get(OpenLine, LINE)
    if open_line is None or DBOS.get_workflow_status(open_line.run_id) is not None:
        return
    with SetWorkflowID(open_line.run_id):
        DBOS.start_workflow(pipeline.erase, open_line.run_id)


def _launch(context: Context, policy: Policy) -> Pipeline:
    config: DBOSConfig = {
        "name": "expunge",
        "system_database_url": context.settings.effective_workflow_database_url,
        "application_version": WORKFLOW_VERSION,
        "executor_id": LINE,  # the line's worker, wherever it runs, resumes the line's runs
        "log_level": "ERROR",
    }
    DBOS(config=config)
    pipeline = Pipeline(context, policy)
    DBOS.launch()  # resumes what a killed worker left
    return pipeline


def _yield_processor() -> None:
    """Let serving go first where the kernel weighs whole sessions: `nice` of the training acts only within one."""
    autogroup = Path("/proc/self/autogroup")
    if os.getsid(0) == os.getpid() and autogroup.exists():  # only a session of our own
        with suppress(OSError):
            autogroup.write_text("19")


def run_worker(settings: Settings, policy: Policy) -> None:
    """The worker process: until SIGTERM or SIGINT."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    work(Context.open(settings), policy, stop)
