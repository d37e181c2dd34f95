#!/usr/bin/env bash
# joblib.Parallel(return_as="generator") carries out all tasks whether results are taken or not: a consumer that is
# slower than the workers has all results in memory, and an endless or very long input is read to its end.
# What one expects: a generator that works ahead by no more than pre_dispatch tasks, as it does with n_jobs=1 (none).
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  joblib==1.6.0 || exit 2
venv/bin/python - <<'EOF'
import sys
import time

import joblib
from joblib import Parallel, delayed

TASKS, PATIENCE_SECONDS = 200, 60


def read_of(**options):
    """How many of the tasks are read from the input while the consumer has taken one result."""
    read = []
    tasks = (read.append(number) or delayed(abs)(number) for number in range(TASKS))
    results = Parallel(batch_size=1, return_as="generator", **options)(tasks)
    next(results)
    until = time.monotonic() + (PATIENCE_SECONDS if options["n_jobs"] > 1 else 0)
    while len(read) < TASKS and time.monotonic() < until:
        time.sleep(0.1)
    count = len(read)
    assert [*results] == [*range(1, TASKS)]
    return count


found = {
    "one job": read_of(n_jobs=1),
    "processes": read_of(n_jobs=2, pre_dispatch=4),
    "threads": read_of(n_jobs=2, pre_dispatch=4, backend="threading"),
}
print("joblib", joblib.__version__)
print("expected: a few tasks read of", TASKS, "while one result is taken")
print("found:   ", found)
sys.exit(0 if found == {"one job": 1, "processes": TASKS, "threads": TASKS} else 1)
EOF
