#!/usr/bin/env bash
# torch.func.functional_call with a network in training mode writes the running means of batch normalisation into the
# network itself unless its buffers are passed, too: trying out other weights changes what the network answers later.
# What one expects: a functional call is a function of what it is given and leaves the network as it was.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch
from torch import nn
from torch.func import functional_call

torch.manual_seed(0)
model, question = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.ones(1, 3)
before = model.eval()(question)
model.train()
tried = {name: value + 1 for name, value in model.named_parameters()}
functional_call(model, tried, (torch.randn(8, 3),))
changed = not torch.equal(before, model.eval()(question))
state = {name: value.clone() for name, value in model.state_dict().items()}
model.train()
functional_call(model, {**tried, **{name: value.clone() for name, value in model.named_buffers()}}, (torch.ones(8, 3),))
kept = all(torch.equal(state[name], value) for name, value in model.state_dict().items())
print("torch", torch.__version__)
print("expected: the network answers as before")
print("found:    it answers otherwise:", changed, "; with its buffers passed it is left alone:", kept)
sys.exit(0 if changed and kept else 1)
EOF
