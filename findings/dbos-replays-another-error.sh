#!/usr/bin/env bash
# DBOS stores a step's exception pickled. One whose class takes other arguments than its message is caught as itself
# the first time, and after a restart the step raises TypeError instead: the workflow takes another way than before.
# What one expects: a recovered workflow is given what its steps gave, or fails with a word about it.
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


class OutOfRange(Exception):
    def __init__(self, value, limit):
        super().__init__(f"{value} is more than {limit}")


@DBOS.step()
def check():
    raise OutOfRange(3, 2)


@DBOS.step()
def go_on():
    if len(LOG.read_text().split()) == 1:
        os.kill(os.getpid(), 9)  # only the first time


@DBOS.workflow()
def work():
    try:
        check()
    except Exception as error:
        note(type(error).__name__)
    go_on()

DBOS(
    config={
        "name": "app",
        "system_database_url": "sqlite:///dbos.db",
        "log_level": "CRITICAL",
        "application_version": "1",
    }
)
DBOS.launch()
if sys.argv[1] == "start":
    with SetWorkflowID("one"):
        work()
DBOS.retrieve_workflow("one").get_result()
DBOS.destroy()
EOF
{ venv/bin/python app.py start; } 2>/dev/null  # ends by a kill
venv/bin/python app.py recover || exit 1
found=$(paste -sd ' ' log)
echo "dbos 3.4.0"
echo "expected: OutOfRange OutOfRange, before the process was killed and after it was started again"
echo "found:    $found"
test "$found" = "OutOfRange TypeError"
