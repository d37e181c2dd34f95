"""The way of a run, from a batch of requests to certificates. Read `Pipeline.erase`: the rest is its steps.

Each step is idempotent and durable: DBOS records that it ended, and a worker that was killed goes on with the step it
was in. Steps hand each other nothing but the run's id; what they made lies in the database and in the run's folder,
under names that say what it is. No user id leaves the request rows.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import structlog
from dbos import DBOS, DBOSConfiguredInstance
from dbos import error as dbos_error

from audit.policy import Policy
from service.context import LINE, Context
from service.erasure import candidates, completion, reruns
from service.erasure import plan as planning
from service.erasure.workspace import RunFolder
from service.errors import DataFolderError, RunStoppedError, StorageError
from service.models import registry
from service.requests.runs import advance, give_up, load_run, note, requests_of
from service.store.engine import reading
from service.telemetry.tracing import Traces

P = ParamSpec("P")
R = TypeVar("R")

log = structlog.get_logger()

SPEAKING = (RunStoppedError, StorageError, DataFolderError)  # errors whose sentences are ours and name nobody
STEP: dict[str, Any] = {"retries_allowed": True, "max_attempts": 3, "interval_seconds": 1.0}
PATIENT: dict[str, Any] = {**STEP, "max_attempts": 20}  # some hours: destruction has begun, and only ahead is right
MOST_RECOVERIES = 200  # starts of the worker that one run outlives; then a human must look


class StepError(Exception):
    """A step failed; the message is the error's kind and place. DBOS stores errors, so no other text may be in one."""


class StoppedError(StepError):
    """A step cannot be done; the message is a sentence for people, which names nobody."""


def reason_of(error: BaseException) -> str:
    """Why a run stopped, as a sentence for people."""
    last = _last(error)
    return str(last) if isinstance(last, StoppedError) else f"The run stopped on {place_of(last)}."


def place_of(error: BaseException) -> str:
    """Kind and place of an error, our own innermost line first; never its message, which may name a person."""
    last = _last(error)
    if isinstance(last, StepError):
        return str(last)
    frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(last.__traceback__)[-3:]]
    return f"{type(last).__name__} in {' < '.join(reversed(frames)) or 'an unknown place'}"


def _last(error: BaseException) -> BaseException:
    """The last error of a step that was tried too often; else the error itself."""
    return error.errors[-1] if isinstance(error, dbos_error.DBOSMaxStepRetriesExceeded) and error.errors else error


def discreet(function: Callable[Concatenate[Pipeline, str, P], R]) -> Callable[Concatenate[Pipeline, str, P], R]:
    """A step whose errors say where, or what its own sentence says; each failed attempt is logged."""

    @functools.wraps(function)
    def step(self: Pipeline, run_id: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(self, run_id, *args, **kwargs)
        except SPEAKING as error:
            failure: StepError = StoppedError(error.detail)
        except Exception as error:
            failure = StepError(place_of(error))
        log.warning("step.failed", run_id=run_id, step=function.__name__, place=str(failure))
        raise failure

    return step


def watched(step: Callable[Concatenate[Pipeline, str, P], R]) -> Callable[Concatenate[Pipeline, str, P], R]:
    """A step whose log lines and span name the run and the requests it is about."""

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
            return step(self, run_id, *args, **kwargs)

    return watched_step


@DBOS.dbos_class()
class Pipeline(DBOSConfiguredInstance):
    """The durable workflow of one model line."""

    def __init__(self, context: Context, policy: Policy, traces: Traces | None = None) -> None:
        super().__init__(LINE)
        self.context = context
        self.policy = policy
        self.traces = traces or Traces()

    @DBOS.workflow(max_recovery_attempts=MOST_RECOVERIES)
    def erase(self, run_id: str) -> str:
        """Forget the people of a run; gives the run's end: `completed` or `needs_attention`."""
        try:
            stage = self.stage(run_id)
            if stage in ("unlearning", "auditing"):
                if isinstance(planned := self.plan(run_id), str):
                    return self.ask_for_help(run_id, planned)
                if planned:
                    self.gather_references(run_id)
                    if not any(self.try_step(run_id, step) for step in range(len(candidates.steps(self.policy)))):
                        return self.ask_for_help(run_id, "No step of the ladder passed the audit.")
                    if (mismatch := self.rerun(run_id)) is not None:
                        return self.ask_for_help(run_id, mismatch)
                    stage = "deploying"
            if stage == "deploying":
                self.deploy(run_id)
            self.purge(run_id)
            self.complete(run_id)
        except Exception as error:
            return self.stop(run_id, error)
        return "completed"

    def stop(self, run_id: str, error: Exception) -> str:
        """The end of a run that met an error its steps could not get over."""
        reason = reason_of(error)
        log.error("run.failed", run_id=run_id, reason=reason)
        return self.ask_for_help(run_id, reason)

    def try_step(self, run_id: str, step: int) -> bool:
        """One method of the ladder: unlearn, then audit what it made."""
        return self.unlearn(run_id, step) is None and self.audit(run_id, step)

    @DBOS.step(**STEP)
    @discreet
    def stage(self, run_id: str) -> str:
        """How far the run is when its workflow begins: not at its start if an earlier workflow brought it there.

        Another version of this program began that one, or it stopped in the purge and a human let the run go on. From
        `deploying` on there is no way back to what its models are made from.
        """
        return load_run(self.context, run_id).stage

    @DBOS.step(**STEP)
    @discreet
    @watched
    def plan(self, run_id: str) -> bool | str:
        """Which rows are to be forgotten, by which bank that is judged.

        False if no model learned from them; a sentence if no model can be made without them.
        """
        self.context.reached("unlearning.start")
        plan = planning.plan(self.context, self._policy_of(run_id), run_id)
        self.context.reached("unlearning.planned")
        return plan.obstacle or plan.must_unlearn

    @DBOS.step(**STEP)
    @discreet
    @watched
    def gather_references(self, run_id: str) -> None:
        """The bank of models that never saw these people, and the oracles methods read; built now if not ahead."""

        def progress(done: int, wanted: int) -> None:
            note(self.context, run_id, f"reference models {done}/{wanted}")
            if done == wanted // 2:
                self.context.reached("unlearning.references")

        def oracles(done: int, wanted: int) -> None:
            note(self.context, run_id, f"oracles {done}/{wanted}")

        planning.gather(self.context, self._policy_of(run_id), run_id, progress, oracles)
        self.context.reached("unlearning.references_built")

    @DBOS.step(**STEP)
    @discreet
    @watched
    def unlearn(self, run_id: str, step: int) -> str | None:
        """A candidate by this step's method, chosen before any audit, and the bank of its other seeds.

        A sentence if the method cannot make one.
        """
        advance(self.context, run_id, "unlearning")
        reason = candidates.unlearn(self.context, self._policy_of(run_id), run_id, step)
        self.context.reached("unlearning.end")
        return reason

    @DBOS.step(**STEP)
    @discreet
    @watched
    def audit(self, run_id: str, step: int) -> bool:
        """The verdict on the candidate; a failed one gets its certificate here and never serves."""
        advance(self.context, run_id, "auditing")
        self.context.reached("auditing.start")
        passed = candidates.judge(self.context, self._policy_of(run_id), run_id, step)
        self.context.reached("auditing.end")
        return passed

    @DBOS.step(**STEP)
    @discreet
    @watched
    def rerun(self, run_id: str) -> str | None:
        """For a share of the runs the passed candidate is made again; gives the reason to stop if it differs."""
        self.context.reached("rerun.start")
        mismatch = reruns.carry_out(self.context, run_id)
        self.context.reached("rerun.end")
        return mismatch

    @DBOS.step(**STEP)
    @discreet
    @watched
    def deploy(self, run_id: str) -> None:
        """Every serving process answers with the certified weights, or refuses to answer."""
        advance(self.context, run_id, "deploying")
        self.context.reached("deploying.start")
        candidates.deploy(self.context, run_id)
        self.context.reached("deploying.end")

    @DBOS.step(**PATIENT)
    @discreet
    @watched
    def purge(self, run_id: str) -> None:
        """Images, packed rows, cached columns and all weights that remember these people are destroyed."""
        advance(self.context, run_id, "purging")
        self.context.reached("purging.start")
        completion.purge(self.context, run_id)
        self.context.reached("purging.end")

    @DBOS.step(**PATIENT)
    @discreet
    @watched
    def complete(self, run_id: str) -> None:
        """Certificates signed and logged, user ids gone, requests completed: one transaction."""
        completion.complete(self.context, run_id)
        self.context.reached("completed")
        completion.tidy(self.context, run_id)
        self.context.reached("completing.tidied")
        log.info("run.completed")

    @DBOS.step(**STEP)
    @discreet
    @watched
    def ask_for_help(self, run_id: str, reason: str) -> str:
        """A human must look: the requests wait, their clock runs on, the line is free for others."""
        abandon(self.context, run_id, reason)
        return "needs_attention"

    def _policy_of(self, run_id: str) -> Policy:
        """The policy that was logged when the run was claimed.

        Raises:
            RunStoppedError: the worker was started with another one since.
        """
        if load_run(self.context, run_id).policy_digest != self.policy.digest:
            raise RunStoppedError(
                "Expected the policy that was logged before this run, but the worker was started with another one. "
                "Start it with that policy again, or approve: the request is then judged anew by the present one."
            )
        return self.policy


def abandon(context: Context, run_id: str, reason: str) -> None:
    """Stop a run that cannot go on; may be repeated.

    A run that has destroyed nothing ends: what it made is destroyed, and the line is freed last. One whose purge has
    begun keeps the line and waits to be resumed.
    """
    run = load_run(context, run_id)
    if run.finished_at is not None:  # candidates there may be another run's by now
        RunFolder(context.settings, run_id).destroy()
        return
    if run.purge is None:
        registry.destroy_candidates(context)
        RunFolder(context.settings, run_id).destroy()
    give_up(context, run_id, reason)
