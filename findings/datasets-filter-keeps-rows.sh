#!/usr/bin/env bash
# `filter`, `select` and `train_test_split` of a data set keep all rows and note which ones count: a data set without
# a person still holds the person, and so does its pickle. `flatten_indices` and `save_to_disk` write the rows that
# count.
# What one expects: a row that was filtered out is gone from what one keeps or hands on.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  datasets==5.2.0 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import pickle
import sys

import datasets

datasets.disable_progress_bars()
everybody = datasets.Dataset.from_dict({"name": [f"person{number}" for number in range(1000)]})
others = everybody.filter(lambda row: row["name"] != "person777")
flat = others.flatten_indices()
found = b"person777" in pickle.dumps(others), others.data.num_rows, b"person777" in pickle.dumps(flat)
print("datasets", importlib.metadata.version("datasets"))
print("expected: no person777, and 999 rows")
print(f"found:    in its pickle: {found[0]}; {len(others)} rows, {found[1]} in the table", end="")
print(f"; in the pickle after flatten_indices: {found[2]}")
sys.exit(0 if found == (True, 1000, False) and len(others) == 999 else 1)
EOF
