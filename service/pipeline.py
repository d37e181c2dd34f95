"""The way of a run, from a batch of requests to certificates. Read `Pipeline.erase`: the rest is its steps.

Each step is idempotent and durable: DBOS records that it ended, and a worker that was killed goes on with the step it
was in. Steps hand each other nothing but the run's id; what they made lies in the database and in the run's folder,
under names that say what it is. No user id leaves the request rows.
"""

from __future__ import annotations

import os
import signal
import traceback
from pathlib import Path
from typing import Any

import structlog
from dbos import DBOS, DBOSConfiguredInstance
from dbos import error as dbos_error

from audit.policy import Policy
from service import candidates, completion, planning, registry, reruns
from service.context import LINE, Context
from service.runs import RunFolder, advance, give_up, note

log = structlog.get_logger()

STEP: dict[str, Any] = {"retries_allowed": True, "max_attempts": 3, "interval_seconds": 1.0}


def place_of(error: BaseException) -> str:
    """Kind and place of an error, our own innermost line first; never its message, which may name a person."""
    last = error.errors[-1] if isinstance(error, dbos_error.DBOSMaxStepRetriesExceeded) and error.errors else error
    frames = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(last.__traceback__)[-3:]]
    return f"{type(last).__name__} in {' < '.join(reversed(frames)) or 'an unknown place'}"


@DBOS.dbos_class()
class Pipeline(DBOSConfiguredInstance):
    """The durable workflow of one model line."""

    def __init__(self, context: Context, policy: Policy) -> None:
        super().__init__(LINE)
        self.context = context
        self.policy = policy

    @DBOS.workflow()
    def erase(self, run_id: str) -> str:
        """Forget the people of a run; gives the run's end: `completed` or `needs_attention`."""
        try:
            if self.plan(run_id):
                self.gather_references(run_id)
                if not any(self.try_step(run_id, step) for step in range(len(candidates.steps(self.policy)))):
                    return self.ask_for_help(run_id, "No step of the ladder passed the audit.")
                if (mismatch := self.rerun(run_id)) is not None:
                    return self.ask_for_help(run_id, mismatch)
                self.deploy(run_id)
            self.purge(run_id)
            self.complete(run_id)
        except Exception as error:
            place = place_of(error)
            log.error("run.failed", run_id=run_id, place=place)
            return self.ask_for_help(run_id, f"The run stopped on {place}.")
        return "completed"

    def try_step(self, run_id: str, step: int) -> bool:
        """One method of the ladder: unlearn, then audit what it made."""
        self.unlearn(run_id, step)
        return self.audit(run_id, step)

    @DBOS.step(**STEP)
    def plan(self, run_id: str) -> bool:
        """Which rows are to be forgotten, by which bank that is judged; False if no model learned from them."""
        self._fail_point("unlearning.start")
        return planning.plan(self.context, self.policy, run_id).must_unlearn

    @DBOS.step(**STEP)
    def gather_references(self, run_id: str) -> None:
        """The bank of models that never saw these people, built now if nobody built it ahead."""

        def progress(done: int, wanted: int) -> None:
            note(self.context, run_id, f"reference models {done}/{wanted}")
            if done == wanted // 2:
                self._fail_point("unlearning.references")

        planning.gather(self.context, self.policy, run_id, progress)

    @DBOS.step(**STEP)
    def unlearn(self, run_id: str, step: int) -> None:
        """A candidate by this step's method, chosen before any audit, and the bank of its other seeds."""
        advance(self.context, run_id, "unlearning")
        candidates.unlearn(self.context, self.policy, run_id, step)
        self._fail_point("unlearning.end")

    @DBOS.step(**STEP)
    def audit(self, run_id: str, step: int) -> bool:
        """The verdict on the candidate; a failed one gets its certificate here and never serves."""
        advance(self.context, run_id, "auditing")
        self._fail_point("auditing.start")
        passed = candidates.judge(self.context, self.policy, run_id, step)
        self._fail_point("auditing.end")
        return passed

    @DBOS.step(**STEP)
    def rerun(self, run_id: str) -> str | None:
        """For a share of the runs the passed candidate is made again; gives the reason to stop if it differs."""
        self._fail_point("rerun.start")
        mismatch = reruns.carry_out(self.context, run_id)
        self._fail_point("rerun.end")
        return mismatch

    @DBOS.step(**STEP)
    def deploy(self, run_id: str) -> None:
        """Every serving process answers with the certified weights, or refuses to answer."""
        advance(self.context, run_id, "deploying")
        self._fail_point("deploying.start")
        candidates.deploy(self.context, run_id)
        self._fail_point("deploying.end")

    @DBOS.step(**STEP)
    def purge(self, run_id: str) -> None:
        """Images, packed rows, cached columns and all weights that remember these people are destroyed."""
        advance(self.context, run_id, "purging")
        self._fail_point("purging.start")
        completion.purge(self.context, run_id)
        self._fail_point("purging.end")

    @DBOS.step(**STEP)
    def complete(self, run_id: str) -> None:
        """Certificates signed and logged, user ids gone, requests completed: one transaction."""
        completion.complete(self.context, self.policy, run_id)
        self._fail_point("completed")
        completion.tidy(self.context, run_id)
        log.info("run.completed", run_id=run_id)

    @DBOS.step(**STEP)
    def ask_for_help(self, run_id: str, reason: str) -> str:
        """A human must look: the requests wait, their clock runs on, the line is free for others."""
        give_up(self.context, run_id, reason)
        registry.destroy_candidates(self.context)
        RunFolder(self.context.settings, run_id).destroy()
        return "needs_attention"

    def _fail_point(self, name: str) -> None:
        """For tests: die here like a machine without power, once."""
        if self.context.settings.fail_at != name:
            return
        mark = self.context.settings.home / f"failed-at-{name}"
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
