#!/usr/bin/env bash
# joblib.hash tells equal values apart by whether parts of them are one object: of [row, row] and [row, list(row)] it
# makes two hashes. A joblib.Memory computes anew for values built another way, such as read from a file.
# What one expects: equal values of equal types have one hash. So it is for strings, numbers and arrays.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  joblib==1.6.0 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys
from pathlib import Path

import joblib
import numpy as np

row, pair, path, array = [1, 2], (1, 2.5), Path("a/b"), np.arange(3)
cases = {
    "list": ([row, row], [row, list(row)]),
    "tuple": ([pair, pair], [pair, tuple(list(pair))]),
    "Path": ([path, path], [path, Path("a/b")]),
    "string": (["ab" * 50] * 2, ["ab" * 50, "".join(["ab"] * 50)]),
    "array": ([array, array], [array, array.copy()]),
}
print("joblib", joblib.__version__)
print("expected: one hash of both, since they are equal")
same = {name: joblib.hash(one) == joblib.hash(other) for name, (one, other) in cases.items()}
print("found:   ", same)
sys.exit(0 if [name for name in same if not same[name]] == ["list", "tuple", "Path"] else 1)
EOF
