#!/usr/bin/env bash
# A step that is being carried out when its workflow is cancelled runs to its end, but DBOS does not record it: a
# workflow that is resumed carries it out a second time.
# What one expects: a step that has ended is recorded, and what is resumed goes on after it.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  dbos==3.4.0 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys
import threading

from dbos import DBOS

begun, may_end, ended = threading.Event(), threading.Event(), []


@DBOS.step()
def send():
    begun.set()
    may_end.wait()
    ended.append("sent")


@DBOS.step()
def note():
    ended.append("noted")


@DBOS.workflow()
def work():
    send()
    note()


DBOS(config={"name": "app", "system_database_url": "sqlite:///dbos.db", "log_level": "CRITICAL"})
DBOS.launch()
handle = DBOS.start_workflow(work)
begun.wait()
DBOS.cancel_workflow(handle.workflow_id)
may_end.set()
try:
    handle.get_result()
except Exception as error:
    print("cancelled:", type(error).__name__)
recorded = len(DBOS.list_workflow_steps(handle.workflow_id))
DBOS.resume_workflow(handle.workflow_id).get_result()
DBOS.destroy()
print("dbos", importlib.metadata.version("dbos"))
print("expected: sent, noted")
print("found:    " + ", ".join(ended), "; steps recorded after the first:", recorded)
sys.exit(0 if ended == ["sent", "sent", "noted"] else 1)
EOF
