#!/usr/bin/env bash
# A workflow that is cancelled while it is in `DBOS.sleep` sleeps on to the end, keeps its thread for so long, and
# whoever waits for its result waits as well.
# What one expects: a cancelled workflow ends at once where it only waits; its status says CANCELLED already.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  dbos==3.4.0 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys
import threading
import time

from dbos import DBOS

SECONDS = 12
asleep, ended, waited = threading.Event(), threading.Event(), threading.Event()


@DBOS.workflow()
def sleeper():
    asleep.set()
    try:
        DBOS.sleep(SECONDS)
    finally:
        ended.set()


def wait_for(handle):
    try:
        handle.get_result()
    except Exception:
        waited.set()


url = "sqlite:///sleep.sqlite"
DBOS(config={"name": "sleeping", "system_database_url": url, "run_admin_server": False, "log_level": "CRITICAL"})
DBOS.launch()
handle = DBOS.start_workflow(sleeper)
asleep.wait(60)
began = time.monotonic()
threading.Thread(target=wait_for, args=(handle,), daemon=True).start()
DBOS.cancel_workflow(handle.workflow_id)
status = handle.get_status().status
still = not ended.wait(SECONDS / 2) and not waited.is_set()
ended.wait(60), waited.wait(60)
seconds = time.monotonic() - began
print("dbos", importlib.metadata.version("dbos"))
print(f"expected: a workflow that sleeps {SECONDS} s ends soon after it was cancelled")
print(f"found:    {status} at once, asleep after half of the time: {still}; its end and its error after {seconds:.0f} s")
DBOS.destroy()
sys.exit(0 if status == "CANCELLED" and still and seconds > SECONDS - 2 else 1)
EOF
