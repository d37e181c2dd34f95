#!/usr/bin/env bash
# torch.save, pickle and copy.deepcopy of a slice hold everything the slice was cut from: one row of a matrix is saved
# with all others, which torch.load and `untyped_storage` give back. `clone` cuts it out.
# What one expects: a file of one person's row has one row in it, or at least a deep copy does.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import copy
import io
import pickle
import sys

import torch

rows = torch.arange(1000.0).repeat_interleave(100).reshape(1000, 100)
file = io.BytesIO()
torch.save(rows[:1], file)
file.seek(0)
loaded = torch.load(file)
other = loaded.as_strided((1,), (1,), storage_offset=777 * 100)
sizes = [len(file.getvalue()), len(pickle.dumps(rows[:1])), copy.deepcopy(rows[:1]).untyped_storage().nbytes()]
cloned = len(pickle.dumps(rows[:1].clone()))
print("torch", torch.__version__)
print("expected: about 400 bytes each of a row of 100 numbers")
print("found:    torch.save", sizes[0], "pickle", sizes[1], "deepcopy", sizes[2], "; of a clone", cloned)
print("row 777, which was not saved, read from the file:", other.item())
sys.exit(0 if min(sizes) >= 400_000 and cloned < 2000 and other == 777 else 1)
EOF
