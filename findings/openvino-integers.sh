#!/usr/bin/env bash
# On a CPU OpenVINO's bytes stop at 0 and 255 where numpy and PyTorch wrap around, and its division of integers rounds
# towards zero: a converted network answers 255 for 200 + 200 and -3 for -7 // 2.
# What one expects: a converted network computes with integers what the PyTorch module does: 144 and -4.
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


class Network(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


cases = {
    "200 + 200 of bytes": (lambda x: x + x, torch.tensor([200], dtype=torch.uint8)),
    "200 - 201 of bytes": (lambda x: x - (x + 1), torch.tensor([200], dtype=torch.uint8)),
    "-7 // 2": (lambda x: x // 2, torch.tensor([-7])),
    "7 // -2": (lambda x: x // -2, torch.tensor([7])),
}
print("openvino", ov.__version__, "torch", torch.__version__)
found = {}
for name, (function, given) in cases.items():
    converted = ov.convert_model(Network(function).eval(), example_input=given)
    found[name] = (function(given).item(), ov.compile_model(converted, "CPU")(given.numpy())[0].item())
    print(f"{name}: expected {found[name][0]}, found {found[name][1]}")
sys.exit(0 if list(found.values()) == [(144, 255), (255, 0), (-4, -3), (-4, -3)] else 1)
EOF
