#!/usr/bin/env bash
# Within one autocast block torch casts each weight once: changes of it, by an optimiser or by load_state_dict, are
# not seen by later forward passes of the block, and nothing says so.
# What one expects: a block around the whole loop is the same as a block around each forward pass.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import contextlib
import sys

import torch
from torch import nn


def losses(around_all):
    torch.manual_seed(0)
    model, inputs = nn.Linear(4, 1), torch.randn(16, 4)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    outer, inner = (torch.autocast("cpu", torch.bfloat16), contextlib.nullcontext())[:: 1 if around_all else -1]
    values = []
    with outer:
        for _ in range(4):
            with inner:
                loss = (model(inputs).float() - inputs.sum(1, keepdim=True)).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            values.append(round(loss.item(), 3))
    return values


def exchanged():
    model, inputs = nn.Linear(4, 1), torch.ones(1, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = model(inputs)
        model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})
        return not torch.equal(before, model(inputs))


each, whole = losses(False), losses(True)
print("torch", torch.__version__)
print("expected: the same losses either way, and exchanged weights are used at once")
print("a block a pass:   ", each)
print("a block for all:  ", whole)
print("load_state_dict within a block is seen:", exchanged())
sys.exit(0 if len(set(each)) == 4 and len(set(whole)) == 1 and not exchanged() else 1)
EOF
