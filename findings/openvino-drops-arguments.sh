#!/usr/bin/env bash
# ov.convert_model drops arguments it does not know, without a word: softplus loses beta and threshold, round loses
# decimals, and dropout that is meant to stay on is gone.
# What one expects: the same answers, or the error that unknown operations get.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys
import warnings

import numpy as np
import openvino as ov
import torch
from torch import nn
from torch.nn.functional import dropout, softplus

warnings.simplefilter("ignore")


class Network(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


given = torch.tensor([[0.123, 1.456, -0.789]])
cases = {
    "softplus(beta=2)": lambda x: softplus(x, beta=2),
    "round(decimals=1)": lambda x: torch.round(x, decimals=1),
    "dropout(training=True)": lambda x: dropout(x, 0.99, training=True),
    "softplus()": softplus,
}
print("openvino", ov.__version__, "torch", torch.__version__)
equal = {}
for name, function in cases.items():
    converted = ov.convert_model(Network(function).eval(), example_input=given)
    found = ov.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given.numpy())[0]
    expected = function(given).numpy()
    equal[name] = bool(np.allclose(expected, found, atol=1e-4))
    shown = [" ".join(f"{value:.3f}" for value in answer.ravel()) for answer in (expected, found)]
    print(f"{name}: expected {shown[0]}, found {shown[1]}")
sys.exit(0 if list(equal.values()) == [False, False, False, True] else 1)
EOF
