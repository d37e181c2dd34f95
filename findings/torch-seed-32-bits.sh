#!/usr/bin/env bash
# On a CPU torch uses only the low 32 bits of a seed: seeds that differ in the upper 32 bits give the same numbers.
# What one expects: `manual_seed` takes a 64-bit number, reports it by `initial_seed`, and so uses it.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch


def drawn(seed):
    return torch.rand(4, generator=torch.Generator().manual_seed(seed))


print("torch", torch.__version__)
print("expected: seeds 5 and 5 + 2**32 give different numbers")
same = torch.equal(drawn(5), drawn(5 + 2**32)) and not torch.equal(drawn(5), drawn(6))
kept = torch.Generator().manual_seed(5 + 2**32).initial_seed() == 5 + 2**32
print("found:   ", "the same numbers" if same else "different ones", "and initial_seed is", "kept" if kept else "cut")
sys.exit(0 if same and kept else 1)
EOF
