#!/usr/bin/env bash
# ModuleValidator.fix, which exchanges what cannot be trained privately, puts a fresh GroupNorm in the place of a
# trained BatchNorm: its trained scale and shift are gone, and a pretrained network answers nonsense, without a
# warning.
# What one expects: weights of the same shapes and meaning are carried over.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  opacus==1.6.0 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")
from opacus.validators import ModuleValidator

model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
with torch.no_grad():
    model[1].weight.fill_(3.0)
    model[1].bias.fill_(5.0)
fixed = ModuleValidator.fix(model)
convolution = torch.equal(fixed[0].weight, model[0].weight)
print("opacus", importlib.metadata.version("opacus"), "torch", torch.__version__)
print("expected: scale 3 and shift 5 in", type(fixed[1]).__name__)
scale, shift = fixed[1].weight[0].item(), fixed[1].bias[0].item()
print("found:    scale", scale, "shift", shift, "; convolution kept:", convolution)
sys.exit(0 if convolution and (fixed[1].weight == 1).all() and (fixed[1].bias == 0).all() else 1)
EOF
