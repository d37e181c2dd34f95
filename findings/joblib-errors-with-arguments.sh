#!/usr/bin/env bash
# An exception whose class takes other arguments than its message cannot be sent from a loky process: the caller gets
# BrokenProcessPool ("A result has failed to un-serialize"), without what went wrong, and the processes are ended. Where
# an attribute of the exception cannot be pickled it is TerminatedWorkerError, which speaks of a segmentation fault.
# What one expects: the caller gets the exception, as with threads, or at least its name and message.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  joblib==1.6.0 || exit 2
cat >program.py <<'EOF'
import sys
import threading

import joblib
from joblib import Parallel, delayed


class ShapeError(Exception):
    def __init__(self, expected, given):
        super().__init__(f"expected {expected}, got {given}")


class LockedError(Exception):
    def __init__(self):
        super().__init__("held by another thread")
        self.lock = threading.Lock()


def task(kind):
    if kind == "shape":
        raise ShapeError(3, 4)
    if kind == "lock":
        raise LockedError
    raise ValueError("no such value")


def error_of(kind, backend):
    try:
        Parallel(n_jobs=2, backend=backend)([delayed(task)(kind)])
    except Exception as error:
        return type(error).__name__


if __name__ == "__main__":
    found = {kind: [error_of(kind, how) for how in ("threading", "loky")] for kind in ("value", "shape", "lock")}
    print("joblib", joblib.__version__)
    print("expected: the same error of threads and processes")
    print("found:   ", found)
    changed = found != {
        "value": ["ValueError", "ValueError"],
        "shape": ["ShapeError", "BrokenProcessPool"],
        "lock": ["LockedError", "TerminatedWorkerError"],
    }
    sys.exit(changed)
EOF
venv/bin/python program.py
