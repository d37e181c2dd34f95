#!/usr/bin/env bash
# ov.convert_model switches the PyTorch module it is given to eval mode and leaves it there: a training that converts
# its model after an epoch goes on without dropout and with frozen batch normalisation.
# What one expects: converting reads a module and leaves it as it was.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys
import warnings

import openvino as ov
import torch
from torch import nn

warnings.simplefilter("ignore")
module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
ov.convert_model(module, example_input=torch.ones(2, 3))
training = [part.training for part in module.modules()]
module(torch.ones(4, 3))
print("openvino", ov.__version__, "torch", torch.__version__)
print("expected: all four modules still train")
print("found:    training", training, "; batches seen after one more step:", module[1].num_batches_tracked.item())
sys.exit(0 if not any(training) and module[1].num_batches_tracked == 0 else 1)
EOF
