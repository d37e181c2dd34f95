#!/usr/bin/env bash
# copy.deepcopy of a module drops the gradients of its parameters, without a word, while a deep copy of a plain tensor
# keeps its gradient: an optimiser of the copy has nothing to step along.
# What one expects: a deep copy is a copy of everything; a model copied between backward and step can take the step.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import copy
import sys

import torch
from torch import nn

model, tensor = nn.Linear(2, 2), torch.ones(2, requires_grad=True)
(model(tensor).sum() + tensor.sum()).backward()
copied = copy.deepcopy(model)
before = copied.weight.detach().clone()
torch.optim.SGD(copied.parameters(), 0.1).step()
moved = not torch.equal(before, copied.weight)
kept = copy.deepcopy(tensor).grad
print("torch", torch.__version__)
print("expected: the copies have the gradients of their originals")
print("found:    the model's", copied.weight.grad, "; a step moves the copy:", moved, "; the tensor's", kept)
sys.exit(0 if copied.weight.grad is None and not moved and kept is not None else 1)
EOF
