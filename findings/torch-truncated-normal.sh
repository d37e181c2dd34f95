#!/usr/bin/env bash
# nn.init.trunc_normal_ cuts at -2 and 2, not at two standard deviations: with std=0.02, as papers on transformers
# have it, nothing is cut, and 5% of the weights lie beyond two standard deviations.
# What one expects: a truncated normal distribution of standard deviation 0.02 has no value beyond 0.04.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch
from torch import nn

torch.manual_seed(0)
weights = nn.init.trunc_normal_(torch.empty(100_000), std=0.02)
beyond = (weights.abs() > 0.04).float().mean().item()
print("torch", torch.__version__)
print("expected: 0.0% beyond 0.04")
print(f"found:    {beyond:.1%} beyond 0.04, the largest {weights.abs().max():.3f}")
sys.exit(0 if 0.04 < beyond < 0.05 else 1)
EOF
