#!/usr/bin/env bash
# The optimiser that timm calls "sgd" has Nesterov's momentum; the plain one of torch.optim.SGD is called "momentum".
# What one expects: create_optimizer_v2(model, "sgd", lr, momentum=0.9) is torch.optim.SGD(parameters, lr,
# momentum=0.9).
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  timm==1.0.31 torch==2.14.1 torchvision==0.29.1 || exit 2
venv/bin/python - <<'EOF'
import sys

import timm.optim
import torch
from torch import nn


def weight(make):
    torch.manual_seed(0)
    model = nn.Linear(4, 1, bias=False)
    optimiser = make(model)
    for _ in range(10):
        optimiser.zero_grad()
        model(torch.ones(1, 4)).square().sum().backward()
        optimiser.step()
    return model.weight.detach()


plain = weight(lambda model: torch.optim.SGD(model.parameters(), 0.1, momentum=0.9))
found = {
    name: torch.equal(weight(lambda model: timm.optim.create_optimizer_v2(model, name, 0.1, momentum=0.9)), plain)
    for name in ("sgd", "momentum")
}
print("timm", timm.__version__, "torch", torch.__version__)
print("expected: 'sgd' trains as torch.optim.SGD")
print("found:    trains as torch.optim.SGD:", found)
sys.exit(0 if found == {"sgd": False, "momentum": True} else 1)
EOF
