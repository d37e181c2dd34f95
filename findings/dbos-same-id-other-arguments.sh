#!/usr/bin/env bash
# A workflow that is started again under an id that was used answers with the first result whatever its arguments are;
# only another function's name is an error. So does `enqueue`.
# What one expects: an id that comes with another question is refused, as servers do with idempotency keys.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  dbos==3.4.0 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

from dbos import DBOS, SetWorkflowID


@DBOS.workflow()
def double(number):
    return 2 * number


@DBOS.workflow()
def triple(number):
    return 3 * number


def asked(function, *arguments):
    try:
        with SetWorkflowID("one"):
            return function(*arguments)
    except Exception as error:
        return type(error).__name__


url = "sqlite:///ids.sqlite"
DBOS(config={"name": "asking", "system_database_url": url, "run_admin_server": False, "log_level": "CRITICAL"})
DBOS.launch()
queue = DBOS.register_queue("later")
found = [
    asked(double, 1),
    asked(double, 50),
    asked(lambda number: queue.enqueue(double, number).get_result(), 60),
    asked(triple, 1),
]
print("dbos", importlib.metadata.version("dbos"))
print("expected: 2, and three errors for double(50), double(60) on a queue and triple(1) under the same id")
print("found:   ", *found)
DBOS.destroy()
sys.exit(0 if found == [2, 2, 2, "DBOSConflictingWorkflowError"] else 1)
EOF
