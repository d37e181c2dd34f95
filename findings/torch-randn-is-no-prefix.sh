#!/usr/bin/env bash
# randn of 16 numbers or more is filled in another order than of fewer, and the last 16 are drawn anew where the
# number is no multiple of 16: of one seed randn(8) and the first 8 of randn(16) have nothing in common, and a vector
# longer by 8 has 8 other numbers within the part they share. `rand` has none of this.
# What one expects: one more image needs more noise at the end, and gives all others the same noise as before.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch


def shared(short, long, draw):
    one = draw(short, generator=torch.Generator().manual_seed(0))
    other = draw(long, generator=torch.Generator().manual_seed(0))
    return (one == other[:short]).sum().item()


print("torch", torch.__version__)
print("expected: 8 of 8 and 32 of 32 numbers are the same")
few, many, uniform = shared(8, 16, torch.randn), shared(32, 40, torch.randn), shared(32, 40, torch.rand)
print(f"found:    {few} of 8 and {many} of 32; {uniform} of 32 of rand")
sys.exit(0 if (few, many, uniform) == (0, 24, 32) else 1)
EOF
