#!/usr/bin/env bash
# Iterating over a DataLoader draws from torch's global generator even with shuffle=False and no workers.
# What one expects: looking at a validation set in order leaves random numbers, and so the rest of a training, alone.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.arange(8.0))


def order(validates):
    torch.manual_seed(0)
    seen = []
    for _ in range(2):
        seen += [batch for (batch,) in DataLoader(data, batch_size=4, shuffle=True)]
        if validates:
            list(DataLoader(data, batch_size=4, shuffle=False))
    return torch.cat(seen)


own = torch.Generator().manual_seed(1)
before = own.get_state()
list(DataLoader(data, batch_size=4, shuffle=False, generator=own))
print("torch", torch.__version__)
print("expected: the same order of training with and without a validation after each epoch")
print("without: ", order(False).int().tolist())
print("with:    ", order(True).int().tolist())
print("a generator of one's own moves, too:", not torch.equal(before, own.get_state()))
sys.exit(0 if not torch.equal(order(False), order(True)) and not torch.equal(before, own.get_state()) else 1)
EOF
