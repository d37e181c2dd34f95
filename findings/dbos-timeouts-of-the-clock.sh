#!/usr/bin/env bash
# A DBOS workflow's time-out is a moment of the clock on the wall: set back by an hour, as at a correction of the time,
# a workflow that may take one second takes as long as it likes within that hour. DBOS.sleep of a process is not longer.
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
DBOS.destroy()
print("dbos", importlib.metadata.version("dbos"))
print("expected: cancelled after one second")
print("found:    clock that goes on:", steady + ";", "clock set back by an hour:", turned)
sys.exit(0 if "Cancelled" in steady and turned == "not cancelled" else 1)
EOF
