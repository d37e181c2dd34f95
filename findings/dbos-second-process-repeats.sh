#!/usr/bin/env bash
# A second process on the same DBOS database, even one that only wants to look, repeats the step that the first
# process is in: both have the executor id `local` unless told otherwise, and a start recovers everything of its id.
# What one expects: a step is carried out again only after its process has ended.
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
    while not Path("go").exists():
        time.sleep(0.05)


@DBOS.workflow()
def work():
    wait()

DBOS(
    config={
        "name": "app",
        "system_database_url": "sqlite:///dbos.db",
        "log_level": "CRITICAL",
        "application_version": "1",
        **({"executor_id": sys.argv[2]} if len(sys.argv) > 2 else {}),
    }
)
DBOS.launch()
if sys.argv[1] == "start":
    with SetWorkflowID("one"):
        work()
else:
    note("looked")
    DBOS.retrieve_workflow("one").get_result()
DBOS.destroy()
EOF
touch log
until_logged() {  # WORD TIMES
  for _ in $(seq 600); do
    test "$(grep -c "$1" log)" -ge "$2" && return 0
    sleep 0.1
  done
  return 1
}
venv/bin/python app.py start & first=$!
until_logged begun 1 || exit 1
venv/bin/python app.py look other & second=$!
until_logged looked 1 || exit 1
by_other=$(grep -c begun log)
venv/bin/python app.py look & third=$!
until_logged begun 2; repeats=$?
touch go
wait $first $second $third
echo "dbos 3.4.0"
echo "expected: the step of the living process is begun once"
echo "found:    begun $(grep -c begun log) times; after a look by another executor id $by_other"
test $repeats -eq 0 -a "$by_other" -eq 1
