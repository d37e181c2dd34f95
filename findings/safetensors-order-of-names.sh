#!/usr/bin/env bash
# safetensors gives tensors back in another order than they were saved in: wide types first, then by name. Pairing
# `model.parameters()` with the loaded values, or building a state's digest or vector from them, mixes up tensors of
# equal shapes.
# What one expects: a dictionary comes back in its order, as from torch.save.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  safetensors==0.8.0 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import io
import sys

import safetensors
import safetensors.torch
import torch
from torch import nn

model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2)).double()
state = model.state_dict()
loaded = safetensors.torch.load(safetensors.torch.save(state))
file = io.BytesIO()
torch.save(state, file)
file.seek(0)
of_torch = list(torch.load(file)) == list(state)
print("safetensors", safetensors.__version__, "torch", torch.__version__)
print("expected:", *state)
print("found:   ", *loaded, "; torch.save keeps the order:", of_torch)
sys.exit(0 if list(loaded) != list(state) and sorted(loaded) == sorted(state) and of_torch else 1)
EOF
