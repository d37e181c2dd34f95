#!/usr/bin/env bash
# The distance of an embedding to itself is not 0: pairwise_distance, and so TripletMarginLoss, adds 0.000001 to every
# difference; cdist takes another formula from 26 rows on, which is off by 0.01 for vectors of length 30.
# What one expects: equal rows have distance 0, which is how one finds duplicates, and 25 rows or 26 make no
# difference.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch
from torch.nn.functional import normalize, pairwise_distance

torch.manual_seed(0)
rows = 30 * normalize(torch.randn(26, 512))
pairs = pairwise_distance(rows, rows).max().item()
of_25, of_26 = (torch.cdist(rows[:n], rows[:n]).diagonal().max().item() for n in (25, 26))
exact = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist").diagonal().max().item()
print("torch", torch.__version__)
print("expected: 0 each")
print(f"found:    pairwise_distance {pairs:.2g}; cdist of 25 rows {of_25:.2g}, of 26 {of_26:.2g}")
print(f"cdist(compute_mode='donot_use_mm_for_euclid_dist'): {exact:.2g}")
sys.exit(0 if pairs > 1e-5 and of_25 == exact == 0 and of_26 > 1e-3 else 1)
EOF
