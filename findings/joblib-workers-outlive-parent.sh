#!/usr/bin/env bash
# When a process that uses joblib is ended by SIGTERM or SIGKILL, its loky processes go on with their tasks: to the end
# of the task, whatever that takes, with the memory and the processor it takes.
# What one expects: they end with the process that asked for the work; nobody will get what they compute.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  joblib==1.6.0 psutil==7.2.2 || exit 2
cat >program.py <<'EOF'
import time
from pathlib import Path

from joblib import Parallel, delayed


def task(number):
    Path(f"begun-{number}").touch()
    while not Path("go").exists():
        time.sleep(0.1)
    Path(f"ended-{number}").touch()


if __name__ == "__main__":
    Parallel(n_jobs=2)(delayed(task)(number) for number in range(2))
EOF
venv/bin/python - <<'EOF'
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import joblib
import psutil

PATIENCE_SECONDS, A_WHILE_SECONDS = 120, 10


def all_there(pattern):
    until = time.monotonic() + PATIENCE_SECONDS
    while len(list(Path().glob(pattern))) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    return len(list(Path().glob(pattern))) == 2


def outlived_by(number):
    """Whether both tasks go on to their end although their caller ended a while ago."""
    for path in [*Path().glob("*ed-*"), *Path().glob("begun-*"), *Path().glob("go")]:
        path.unlink(missing_ok=True)
    caller = subprocess.Popen([sys.executable, "program.py"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert all_there("begun-*")
    started = psutil.Process(caller.pid).children(recursive=True)
    os.kill(caller.pid, number)
    caller.wait()
    psutil.wait_procs(started, timeout=A_WHILE_SECONDS)
    Path("go").touch()
    ended = all_there("ended-*")
    for process in psutil.wait_procs(started, timeout=A_WHILE_SECONDS)[1]:
        process.kill()
    return ended


found = {signal.Signals(number).name: outlived_by(number) for number in (signal.SIGTERM, signal.SIGKILL)}
print("joblib", joblib.__version__)
print("expected: tasks end with their caller")
print("found:    tasks went on to their end:", found)
sys.exit(0 if all(found.values()) else 1)
EOF
