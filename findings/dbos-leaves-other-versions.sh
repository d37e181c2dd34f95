#!/usr/bin/env bash
# After an upgrade that changes a workflow's code DBOS leaves the workflows of the version before pending, without an
# error: its application version is a hash of the workflows' source, and a start recovers only its own.
# What one expects: a restart goes on with what was interrupted, or says that it cannot.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  dbos==3.4.0 || exit 2
cat > app.py <<'EOF'
import os
import sys
import time
from pathlib import Path

from dbos import DBOS, SetWorkflowID

LOG = Path("log")


def note(word):
    with LOG.open("a") as file:
        file.write(word + "\n")


@DBOS.step()
def wait():
    note("begun")
    if sys.argv[1] == "start":
        os.kill(os.getpid(), 9)


@DBOS.workflow()
def work():
    wait()
    # a comment of version 1


@DBOS.workflow()
def new_work():
    return "done"

DBOS(
    config={
        "name": "app",
        "system_database_url": "sqlite:///dbos.db",
        "log_level": "CRITICAL",
    }
)
DBOS.launch()
if sys.argv[1] == "start":
    with SetWorkflowID("one"):
        work()
new_work()
handle = DBOS.retrieve_workflow("one")
if sys.argv[1] == "back":
    handle.get_result()
print(handle.get_status().status)
DBOS.destroy()
EOF
{ venv/bin/python app.py start; } 2>/dev/null  # ends by a kill
cp app.py first.py
sed -i 's/a comment of version 1/another comment/' app.py
after=$(venv/bin/python app.py upgraded)
cp first.py app.py
back=$(venv/bin/python app.py back)
echo "dbos 3.4.0"
echo "expected: SUCCESS after a restart with another comment in the workflow"
echo "found:    $after; with the first source again $back; the step begun $(grep -c begun log) times"
test "$after $back" = "PENDING SUCCESS"
