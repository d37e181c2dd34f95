#!/usr/bin/env bash
# A DBOS workflow's time-out is a moment of the clock on the wall: set back by an hour, as at a correction of the time,
# a workflow that may take one second takes as long as it likes within that hour, and DBOS.recv that may wait for one
# second waits for an hour. DBOS.sleep of a process is not longer.
# What one expects: a time-out of one second ends after one second, at least in the process that began the workflow.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  dbos==3.4.0 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys
import threading
import time

from dbos import DBOS, SetWorkflowTimeout

may_end, clock = threading.Event(), time.time


@DBOS.step()
def wait():
    may_end.wait(20)


@DBOS.step()
def after():
    pass


@DBOS.workflow()
def work():
    wait()
    after()
    return "not cancelled"


@DBOS.workflow()
def receive():
    DBOS.recv("topic", timeout_seconds=1)


@DBOS.workflow()
def sleep():
    DBOS.sleep(1)


def has_ended(workflow, set_back):
    """Whether it ends within ten seconds."""
    handle = DBOS.start_workflow(workflow)
    time.sleep(0.3)
    time.time = lambda: clock() - set_back
    for _ in range(100):
        if (status := handle.get_status().status) == "SUCCESS":
            break
        time.sleep(0.1)
    time.time = clock
    handle.get_result()
    return status == "SUCCESS"


def outcome(set_back):
    may_end.clear()
    with SetWorkflowTimeout(1):
        handle = DBOS.start_workflow(work)
    time.sleep(0.3)
    time.time = lambda: clock() - set_back
    time.sleep(5)
    may_end.set()
    try:
        return handle.get_result()
    except Exception as error:
        return type(error).__name__
    finally:
        time.time = clock


DBOS(config={"name": "app", "system_database_url": "sqlite:///dbos.db", "log_level": "CRITICAL"})
DBOS.launch()
steady, turned = outcome(0), outcome(3600)
waits = {work.__name__: has_ended(work, 3600) for work in (receive, sleep)}
DBOS.destroy()
print("dbos", importlib.metadata.version("dbos"))
print("expected: cancelled after one second")
print("found:    clock that goes on:", steady + ";", "clock set back by an hour:", turned + ";", "ended:", waits)
found = "Cancelled" in steady, turned, waits["receive"], waits["sleep"]
sys.exit(0 if found == (True, "not cancelled", False, True) else 1)
EOF
