#!/usr/bin/env bash
# A Ray task that calls sys.exit, with 0 or any other status, counts as a lost worker: it is carried out three times more
# (for ever with max_retries=-1), then the caller gets WorkerCrashedError, without the message of the exit.
# What one expects: SystemExit is an error of the task, which comes to the caller at once, as ValueError does.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  ray==2.60.0 || exit 2
RAY_USAGE_STATS_ENABLED=0 venv/bin/python - <<'EOF'
import sys
from pathlib import Path

import ray

for tries_left in (4, 3, 2, 1, 0):  # a node must start within 30 s, which a busy machine may miss
    try:
        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        break
    except Exception:
        ray.shutdown()
        if not tries_left:
            raise


@ray.remote(max_retries=1)
def task(log, error):
    with Path(log).open("a") as file:
        file.write("run\n")
    raise error


def result(name, error):
    log = Path(name).resolve()
    try:
        ray.get(task.remote(str(log), error))
    except Exception as caught:
        return type(caught).__name__, log.read_text().count("run")


raised = result("a", ValueError("no such option"))
ended, failed = result("b", SystemExit(0)), result("c", SystemExit("no such option"))
print("ray", ray.__version__)
print("expected: each is run once")
print(f"found:    ValueError {raised}, sys.exit(0) {ended}, sys.exit(message) {failed}")
ray.shutdown()
sys.exit(0 if (raised[1], ended, failed) == (1, ("WorkerCrashedError", 2), ("WorkerCrashedError", 2)) else 1)
EOF
