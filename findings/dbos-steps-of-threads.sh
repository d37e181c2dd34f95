#!/usr/bin/env bash
# Steps that a workflow calls in threads of its own are plain calls: they run, DBOS records none of them, and after a
# restart all are carried out again. Steps called in the workflow's own thread are carried out once.
# What one expects: a step of a workflow is recorded wherever it is called, or the call is an error.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  dbos==3.4.0 || exit 2
cat > app.py <<'EOF'
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dbos import DBOS, SetWorkflowID

NAME = sys.argv[1]


@DBOS.step()
def send(number):
    with Path(f"sent-{NAME}").open("a") as file:
        file.write(f"{number}\n")


@DBOS.workflow()
def of_threads():
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(send, range(3)))
    end()


@DBOS.workflow()
def of_itself():
    for number in range(3):
        send(number)
    end()


def end():
    if not Path("restarted").exists():
        os._exit(0)


DBOS(
    config={
        "name": "app",
        "system_database_url": f"sqlite:///{NAME}.db",
        "log_level": "CRITICAL",
        "application_version": "1",
    }
)
DBOS.launch()
with SetWorkflowID("one"):
    {"of_threads": of_threads, "of_itself": of_itself}[NAME]()
print(NAME, "recorded", len(DBOS.list_workflow_steps("one")), "steps")
DBOS.destroy()
EOF
venv/bin/python app.py of_threads && venv/bin/python app.py of_itself || exit 1
touch restarted
venv/bin/python app.py of_threads && venv/bin/python app.py of_itself || exit 1
threads=$(wc -l <sent-of_threads) itself=$(wc -l <sent-of_itself)
echo "dbos 3.4.0"
echo "expected: three sent of each workflow, over a restart"
echo "found:    $threads of the one with threads, $itself of the other"
test "$threads" -eq 6 -a "$itself" -eq 3
