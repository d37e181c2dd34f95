#!/usr/bin/env bash
# A step or workflow that calls sys.exit (a command of a library does, or argparse) ends neither with an error nor the
# process: the workflow is PENDING, its thread is gone, no retry is made, and it goes on when the process starts again.
# What one expects: SystemExit is an error of the step, which is tried again and then recorded; or the process ends.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  dbos==3.4.0 || exit 2
venv/bin/python - <<'EOF'
import os
import sys
import time
from importlib.metadata import version

from dbos import DBOS

PATIENCE_SECONDS, A_WHILE_SECONDS = 60, 8
DBOS(config={"name": "exits", "system_database_url": "sqlite:///exits.db", "log_level": "CRITICAL"})
calls = []


@DBOS.step(retries_allowed=True, max_attempts=2, interval_seconds=0.1)
def step(kind):
    calls.append(kind)
    if kind == "exit":
        sys.exit("no such option")
    raise ValueError("no such option")


@DBOS.workflow()
def workflow(kind):
    step(kind)


def result(kind, seconds):
    handle = DBOS.start_workflow(workflow, kind)
    until = time.monotonic() + seconds
    while handle.get_status().status == "PENDING" and time.monotonic() < until:
        time.sleep(0.1)
    return handle.get_status().status, calls.count(kind)


DBOS.launch()
found = {"ValueError": result("error", PATIENCE_SECONDS), "SystemExit": result("exit", A_WHILE_SECONDS)}
print("dbos", version("dbos"))
print("expected: both end with ERROR after two calls")
print("found:   ", found, flush=True)
os._exit(0 if found == {"ValueError": ("ERROR", 2), "SystemExit": ("PENDING", 1)} else 1)
EOF
