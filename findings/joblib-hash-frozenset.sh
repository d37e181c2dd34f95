#!/usr/bin/env bash
# joblib.hash of a frozenset depends on PYTHONHASHSEED, which Python draws anew for each process; that of a set does
# not. A joblib.Memory whose function takes a frozenset computes anew in every process.
# What one expects: joblib.hash is made to be the same in every process, and is for sets and dictionaries.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  joblib==1.6.0 || exit 2
venv/bin/python - <<'EOF'
import os
import subprocess
import sys

import joblib


def hashes(expression):
    code = f"import joblib; print(joblib.hash({expression}))"
    environments = [os.environ | {"PYTHONHASHSEED": str(seed)} for seed in range(6)]
    return {subprocess.check_output([sys.executable, "-c", code], env=each) for each in environments}


print("joblib", joblib.__version__)
print("expected: one hash of each in six processes")
n_set, n_frozen = len(hashes("set('abcdef')")), len(hashes("frozenset('abcdef')"))
print(f"found:    {n_set} of a set, {n_frozen} of a frozenset")
sys.exit(0 if n_set == 1 < n_frozen else 1)
EOF
