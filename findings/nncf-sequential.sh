#!/usr/bin/env bash
# nncf.quantize cannot quantize an nn.Sequential: the store of hooks it adds becomes one of the layers and is called.
# What one expects: of all networks the simplest one can be quantized.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  nncf==3.4.0 torch==2.14.1 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import logging
import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import nncf

inputs = torch.ones(2, 3)
print("nncf", importlib.metadata.version("nncf"), "torch", torch.__version__)
print("expected: nn.Sequential(Linear, ReLU) is quantized")
try:
    nncf.quantize(nn.Sequential(nn.Linear(3, 3), nn.ReLU()).eval(), nncf.Dataset([inputs]))
    found = "quantized"
except NotImplementedError as error:
    found = f"NotImplementedError: {error}"
print("found:   ", found)
sys.exit(0 if "HookStorage" in found else 1)
EOF
