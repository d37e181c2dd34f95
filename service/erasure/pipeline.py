"""A run from a batch of requests to certificates. `Pipeline.erase` is the whole story; the rest is its steps.

Each step is idempotent and durable. DBOS records that a step ended, and a worker that was killed goes on with the step
it was in. Steps pass each other nothing but the run's id: what a step makes is stored in the database and in the run's
folder. No user id leaves the request rows.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
import torch
from dbos import DBOS, DBOSConfiguredInstance
from dbos import error as dbos_error

from audit.policy import Policy
from service.context import LINE, Context
from service.erasure import candidates, completion, deploying, judging, reruns
from service.erasure.ladder import steps
from service.erasure.references import gather
from service.erasure.workspace import RunFolder, Workspace
from service.errors import DataFolderError, RunStoppedError, StorageError
from service.models import destruction
from service.requests.runs import advance, give_up, load_run, requests_of
from service.store.engine import reading
from service.telemetry.tracing import Traces
from unlearning.errors import staying

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger()

TELLABLE = (RunStoppedError, StorageError, DataFolderError)  # errors whose messages are ours and name nobody
STEP: dict[str, Any] = {"retries_allowed": True, "max_attempts": 3, "interval_seconds": 1.0}
PATIENT: dict[str, Any] = {**STEP, "max_attempts": 20}  # some hours: once destruction has begun, it must be finished
MOST_RECOVERIES = 200  # how often a restarted worker takes up one run; then a human must look


class StepError(Exception):
    """A step failed. The message is the error's kind and place and nothing else, because DBOS stores errors."""


class StoppedError(StepError):
    """A step cannot be done. The message is a sentence for the operator, which names nobody."""


def reason_of(error: BaseException) -> str:
    """Why a run stopped, as a sentence for the operator."""
    last = _last(error)
    return str(last) if isinstance(last, StoppedError) else f"The run stopped on {place_of(last)}."


def place_of(error: BaseException) -> str:
    """Kind and place of an error, innermost line first, without its message, which may name a person."""
    last = _last(error)
    if isinstance(last, StepError):
        return str(last)
    frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(last.__traceback__)[-3:]]
    return f"{type(last).__name__} in {' < '.join(reversed(frames)) or 'an unknown place'}"


def _last(error: BaseException) -> BaseException:
    """The last error of a step that was tried too often; else the error itself."""
    return error.errors[-1] if isinstance(error, dbos_error.DBOSMaxStepRetriesExceeded) and error.errors else error


def discreet(function: Callable[Concatenate[Pipeline, str, P], R]) -> Callable[Concatenate[Pipeline, str, P], R]:
    """Let no error message out of a step except our own sentences; log each failed attempt."""

    @functools.wraps(function)
    def step(self: Pipeline, run_id: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with staying():
                return function(self, run_id, *args, **kwargs)
        except TELLABLE as error:
            failure: StepError = StoppedError(error.detail)
        except Exception as error:
            failure = StepError(place_of(error))
        log.warning("step.failed", run_id=run_id, step=function.__name__, place=str(failure))
        raise failure

    return step


def watched(step: Callable[Concatenate[Pipeline, Workspace, P], R]) -> Callable[Concatenate[Pipeline, str, P], R]:
    """Give each attempt of a step a workspace of its own; name the run and its requests in log lines and span."""

    @functools.wraps(step)
    def watched_step(self: Pipeline, run_id: str, *args: P.args, **kwargs: P.kwargs) -> R:
        with reading(self.context.engine) as s:
            erasure_ids = [request.id for request in requests_of(s, run_id)]
        named = {"run_id": run_id, "erasure_ids": erasure_ids, "stage": step.__name__}
        with (
            structlog.contextvars.bound_contextvars(**named),
            self.traces.stage(run_id, step.__name__, erasure_ids=erasure_ids),
        ):
            log.info("stage.begun")
            return step(self, Workspace(self.context, run_id, self.policy), *args, **kwargs)

    return watched_step


def durable(
    **options: Any,
) -> Callable[[Callable[Concatenate[Pipeline, Workspace, P], R]], Callable[Concatenate[Pipeline, str, P], R]]:
    """`DBOS.step` with these options of a step that is `discreet` and `watched`."""
    return lambda step: DBOS.step(**options)(discreet(watched(step)))


@DBOS.dbos_class()
class Pipeline(DBOSConfiguredInstance):
    """The durable workflow of one model line."""

    def __init__(self, context: Context, policy: Policy, traces: Traces | None = None) -> None:
        super().__init__(LINE)
        torch.set_num_threads(1)  # as references are scored; more would wait for each other beside serving, spinning
        self.context = context
        self.policy = policy
        self.traces = traces or Traces()

    @DBOS.workflow(max_recovery_attempts=MOST_RECOVERIES)
    def erase(self, run_id: str) -> str:
        """Erase the subjects of a run; gives how the run ended: `completed` or `needs_attention`."""
        try:
            phase = self.stage(run_id)
            if phase in ("unlearning", "auditing"):
                if isinstance(planned := self.plan(run_id), str):
                    return self.ask_for_help(run_id, planned)
                if planned:
                    self.gather_references(run_id)
                    if not any(self.try_step(run_id, step) for step in range(len(steps(self.policy, ())))):
                        return self.ask_for_help(run_id, "No step of the ladder passed the audit.")
                    if (mismatch := self.rerun(run_id)) is not None:
                        return self.ask_for_help(run_id, mismatch)
                    phase = "deploying"
            if phase == "deploying" and (refusal := self.deploy(run_id)) is not None:
                return self.ask_for_help(run_id, refusal)
            self.purge(run_id)
            self.complete(run_id)
        except Exception as error:
            log.error("run.failed", run_id=run_id, reason=reason_of(error))
            return self.ask_for_help(run_id, reason_of(error))
        return "completed"

    def try_step(self, run_id: str, step: int) -> bool:
        """Try one step of the ladder: unlearn, then audit the candidate; gives whether it passed."""
        return self.unlearn(run_id, step) is None and self.audit(run_id, step)

    @DBOS.step(**STEP)
    @discreet
    def stage(self, run_id: str) -> str:
        """The phase in which the workflow finds its run.

        It is not the first one if an earlier workflow carried the run on: one that another version of this program
        began, or one that stopped in the purge before a human let the run go on. From `deploying` on no model is made,
        since the images and weights to make it from may be destroyed.
        """
        return load_run(self.context, run_id).stage

    @durable(**STEP)
    def plan(self, work: Workspace) -> bool | str:
        """Find the rows to be forgotten and the bank that judges.

        Returns:
            Whether a model learned from these rows, or a sentence that says why no model can be made without them.
        """
        work.context.reached("unlearning.start")
        plan = work.make_plan()
        work.context.reached("unlearning.planned")
        return plan.obstacle or plan.must_unlearn

    @durable(**STEP)
    def gather_references(self, work: Workspace) -> None:
        """Complete the bank of reference models and the oracles; what was not built ahead is built now."""
        gather(work)
        work.context.reached("unlearning.references_built")

    @durable(**STEP)
    def unlearn(self, work: Workspace, step: int) -> str | None:
        """Make a candidate by this step's method, chosen before any audit, and the bank of its other seeds.

        Returns:
            None, or a sentence that says why the method cannot make one.
        """
        advance(work.context, work.run_id, "unlearning")
        reason = candidates.unlearn(work, step)
        work.context.reached("unlearning.end")
        return reason

    @durable(**STEP)
    def audit(self, work: Workspace, step: int) -> bool:
        """Judge the candidate; gives whether it passed. One that failed gets its certificate here and never serves."""
        advance(work.context, work.run_id, "auditing")
        work.context.reached("auditing.start")
        passed = judging.judge(work, step)
        work.context.reached("auditing.end")
        return passed

    @durable(**STEP)
    def rerun(self, work: Workspace) -> str | None:
        """In a share of the runs, make the passed candidate again; gives the reason to stop if it differs."""
        work.context.reached("rerun.start")
        mismatch = reruns.carry_out(work)
        work.context.reached("rerun.end")
        return mismatch

    @durable(**STEP)
    def deploy(self, work: Workspace) -> str | None:
        """Swap the certified weights in. Afterwards every serving process answers with them or refuses to answer.

        Returns:
            None, or a sentence that says why they were not put into service.
        """
        advance(work.context, work.run_id, "deploying")
        work.context.reached("deploying.start")
        refusal = deploying.deploy(work)
        work.context.reached("deploying.end")
        return refusal

    @durable(**PATIENT)
    def purge(self, work: Workspace) -> None:
        """Destroy the subjects' images, packed rows and cached columns, and all weights that remember them."""
        advance(work.context, work.run_id, "purging")
        work.context.reached("purging.start")
        completion.purge(work)
        work.context.reached("purging.end")

    @durable(**PATIENT)
    def complete(self, work: Workspace) -> None:
        """Sign and log certificates, delete the user ids and complete the requests, in one transaction; then tidy."""
        completion.complete(work)
        work.context.reached("completed")
        completion.tidy(work)
        work.context.reached("completing.tidied")
        log.info("run.completed")

    @durable(**STEP)
    def ask_for_help(self, work: Workspace, reason: str) -> str:
        """Hand the run to a human. Its requests wait and keep their deadlines; the line is free for other runs."""
        abandon(work.context, work.run_id, reason)
        return "needs_attention"


def abandon(context: Context, run_id: str, reason: str) -> None:
    """Stop a run that cannot go on. It can be called again.

    A run that has destroyed nothing ends: its candidates and working files are destroyed, then the line is freed. A run
    whose purge has begun keeps the line and waits to be resumed.
    """
    run = load_run(context, run_id)
    if run.finished_at is not None:  # the candidates that are there now may be another run's
        RunFolder(context.settings, run_id).destroy()
        return
    if run.purge is None:
        destruction.destroy_candidates(context)
        RunFolder(context.settings, run_id).destroy()
    give_up(context, run_id, reason)
