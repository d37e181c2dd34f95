"""A program for the purge's tests: a real durable run whose storage refuses in the middle of the purge.

Run with the home of a tiny service. A step is tried twice instead of for hours. Prints one line of JSON: states of the
request, ids of the workflows and what the certificate counts.
"""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import dbos

_STEP = dbos.DBOS.step


def _impatient(**options: Any) -> Any:
    return _STEP(**{**options, "max_attempts": 2, "interval_seconds": 0.01})


dbos.DBOS.step = _impatient  # type: ignore[method-assign, assignment]  # before the pipeline is imported

from audit.proof.certificate import verify  # noqa: E402
from service import worker  # noqa: E402
from service.banks import replica  # noqa: E402
from service.context import Context  # noqa: E402
from service.erasure.pipeline import Pipeline  # noqa: E402
from service.errors import StorageError  # noqa: E402
from service.requests import decisions, runs  # noqa: E402
from service.requests.schemas import Decision  # noqa: E402
from service.telemetry.tracing import Traces  # noqa: E402
from tests.service import tiny  # noqa: E402
from tests.waiting import wait_until  # noqa: E402


def main(home: Path) -> None:
    context = Context.open(tiny.settings_of(home, hold_seconds=0, poll_seconds=0.05))
    refuses = threading.Event()
    follow = replica.follow_erasure

    def follow_unless_refused(context: Context) -> None:
        if refuses.is_set():
            raise StorageError("The storage refuses to destroy.")
        follow(context)

    replica.follow_erasure = follow_unless_refused
    refuses.set()
    policy = replace(tiny.POLICY, ladder=("retrain",))
    (request_id,) = tiny.file(context, tiny.people(context)[0])
    pipeline = Pipeline(context, policy, Traces())
    worker.launch(context.settings)
    seen: list[str] = []

    def work_until(state: str) -> None:
        def work() -> bool:
            worker.claim(context, policy)
            worker.start_open_run(context, pipeline)
            return tiny.request_of(context, request_id).state == state

        wait_until(work, f"the request to be {state}")
        seen.append(state)

    work_until("needs_attention")
    reason = tiny.request_of(context, request_id).attention_reason
    for _ in range(3):
        worker.start_open_run(context, pipeline)  # leaves it alone until somebody approves
    run_id = tiny.request_of(context, request_id).run_id or ""
    workflows = [runs.workflow_id(tiny.run_of(context, run_id))]
    refuses.clear()
    decisions.approve(context, tiny.CLIENT, request_id, Decision(reason="It takes orders again."))
    workflows.append(runs.workflow_id(tiny.run_of(context, run_id)))
    work_until("completed")
    (record,) = tiny.certificates(context)
    found = {
        "seen": seen, "reason": reason, "run": run_id, "workflows": workflows, "certified": record.run_id,
        "verdict": record.verdict, "outcome": tiny.request_of(context, request_id).outcome,
        "destroyed": (verify(record.envelope).statement or {})["predicate"]["purge"]["destroyed"],
    }  # fmt: skip
    dbos.DBOS.destroy(workflow_completion_timeout_sec=0)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
