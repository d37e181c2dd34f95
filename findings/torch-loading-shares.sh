#!/usr/bin/env bash
# `optimizer.load_state_dict` and `load_state_dict(assign=True)` take the tensors they are given, not copies of them:
# the state's source and its copy change together; and an optimiser made before such a load trains weights that are
# nobody's.
# What one expects: loading a state copies it, as `Module.load_state_dict` does.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch
from torch import nn


def step(optimiser, weight):
    weight.grad = torch.ones_like(weight)
    optimiser.step()


one, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
first, second = torch.optim.Adam([one]), torch.optim.Adam([other])
step(first, one)
second.load_state_dict(first.state_dict())
before = first.state[one]["exp_avg"].clone()
step(second, other)
moments = not torch.equal(before, first.state[one]["exp_avg"])

original, copy = nn.Linear(2, 2), nn.Linear(2, 2)
early = torch.optim.SGD(copy.parameters(), 0.1)
copy.load_state_dict(original.state_dict(), assign=True)
before = original.weight.detach().clone()
copy.weight.grad = torch.ones_like(copy.weight)
early.step()
dead = torch.equal(before, copy.weight)
torch.optim.SGD(copy.parameters(), 0.1).step()
weights = not torch.equal(before, original.weight)
print("torch", torch.__version__)
print("expected: none of these")
print("a step of the second optimiser changes the first one's moments:", moments)
print("an optimiser made before load_state_dict(assign=True) changes no weight:", dead)
print("training the copy changes the original:", weights)
sys.exit(0 if moments and dead and weights else 1)
EOF
