#!/usr/bin/env bash
# A network from ov.convert_model shares its weights with the PyTorch module: changing the module changes the
# converted network, and half of one that was compiled before: its biases follow, its matrices stay.
# What one expects: a converted network is a copy; at the latest compiling freezes it.
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

warnings.simplefilter("ignore")
OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
module, question = nn.Linear(3, 1).requires_grad_(False).eval(), np.ones((1, 3), np.float32)
module.weight.fill_(1.0)
module.bias.fill_(10.0)
network = ov.convert_model(module, example_input=torch.ones(1, 3))
compiled = ov.compile_model(network, "CPU", OPTIONS)
before = compiled(question)[0].item()
module.weight.zero_()
module.bias.zero_()
after, anew = compiled(question)[0].item(), ov.compile_model(network, "CPU", OPTIONS)(question)[0].item()
print("openvino", ov.__version__, "torch", torch.__version__)
print("expected: 13.0 also after the module's weights became 0")
print(f"found:    {before} before; after that {after} of the network compiled before, {anew} of one compiled anew")
sys.exit(0 if before == 13 and after != 13 and anew == 0 else 1)
EOF
