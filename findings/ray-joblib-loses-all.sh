#!/usr/bin/env bash
# joblib on Ray (`ray.util.joblib`) computes in actors: where one is killed, all of the call is lost with ActorDiedError,
# as no task is carried out again; results cannot be taken as they come; and small arrays are read-only, too.
# What one expects: what Ray does with tasks (three further tries on other processes) and joblib with its own processes
# (return_as="generator", and arrays that a task may change).
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  ray==2.60.0 joblib==1.6.0 numpy==2.4.6 || exit 2
RAY_USAGE_STATS_ENABLED=0 venv/bin/python -W ignore - <<'EOF'
import os
import signal
import sys
from pathlib import Path

import joblib
import numpy as np
import ray
from joblib import Parallel, delayed
from ray.util.joblib import register_ray

for tries_left in (4, 3, 2, 1, 0):  # a node must start within 30 s, which a busy machine may miss
    try:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="CRITICAL")
        break
    except Exception:
        ray.shutdown()
        if not tries_left:
            raise
register_ray()


def fragile(log):
    """Its process is killed the first time."""
    with Path(log).open("a") as file:
        file.write("run\n")
    if Path(log).read_text().count("run") == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def changed(array):
    array += 1
    return array.tolist()


def outcome(function):
    try:
        return function()
    except Exception as error:
        return type(error).__name__


task_log, joblib_log = (str(Path(name).resolve()) for name in ("task", "joblib"))
found = {"ray": outcome(lambda: ray.get(ray.remote(fragile).remote(task_log)))}
with joblib.parallel_config(backend="ray", n_jobs=2):
    found["joblib on ray"] = outcome(lambda: Parallel()([delayed(fragile)(joblib_log)]))
    found["generator"] = outcome(lambda: list(Parallel(return_as="generator")([delayed(abs)(-1)])))
    found["array of 2"] = outcome(lambda: Parallel()([delayed(changed)(np.zeros(2))]))
found["array of 2 by loky"] = outcome(lambda: Parallel(n_jobs=2)([delayed(changed)(np.zeros(2))]))
print("ray", ray.__version__)
print("expected: done, [done], [1], [[1.0, 1.0]] twice")
print("found:   ", found)
ray.shutdown()
sys.exit([*found.values()] != ["done", "ActorDiedError", "ValueError", "ValueError", [[1.0, 1.0]]])
EOF
