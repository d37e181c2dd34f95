#!/usr/bin/env bash
# One missing value makes a column of whole numbers one of float32 in the formats numpy and torch, and ids above
# 16,777,216 become others: two people become one.
# What one expects: whole numbers stay whole numbers, or the missing value is an error.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  datasets==5.2.0 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

import datasets

ids = [16_777_216, 16_777_217]
whole = datasets.Dataset.from_dict({"id": ids})
gap = datasets.Dataset.from_dict({"id": [*ids, None]})
found = {}
for form in ("numpy", "torch"):
    found[form] = gap.with_format(form)[:]["id"], whole.with_format(form)[:]["id"]
print("datasets", importlib.metadata.version("datasets"))
print("expected:", ids)
for form, (with_gap, without) in found.items():
    print(f"{form}: {with_gap[:2].tolist()} of {with_gap.dtype} beside a gap, {without.tolist()} without")
sys.exit(0 if all(a[0] == a[1] and b.tolist() == ids for a, b in found.values()) else 1)
EOF
