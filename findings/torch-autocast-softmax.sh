#!/usr/bin/env bash
# On a CPU autocast leaves softmax, log_softmax, layer_norm, sums and norms in bfloat16, three digits; on a GPU it
# computes them in float32. Confidences of a model under autocast come in steps of 0.004 near 1.
# What one expects: autocast chooses float32 for what needs it, softmax first of all, on every device alike.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch
from torch.nn.functional import cross_entropy, layer_norm, softmax

logits = torch.linspace(4, 8, 200).unsqueeze(1) * torch.tensor([1.0, 0.0])
with torch.autocast("cpu", torch.bfloat16):
    logits = logits @ torch.eye(2)
    types = {
        "softmax": softmax(logits, 1).dtype,
        "log_softmax": logits.log_softmax(1).dtype,
        "layer_norm": layer_norm(logits, [2]).dtype,
        "sum": logits.sum().dtype,
        "norm": logits.norm().dtype,
        "cross_entropy": cross_entropy(logits, torch.zeros(200, dtype=torch.long)).dtype,
    }
    confidences = softmax(logits, 1)[:, 0]
print("torch", torch.__version__)
print("expected: float32 for each")
print("found:   ", types)
print(f"confidences between 0.98 and 1: {len(confidences.unique())} values; of float32:", end=" ")
print(len(softmax(logits.float(), 1)[:, 0].unique()))
sys.exit(0 if [name for name in types if types[name] == torch.float32] == ["cross_entropy"] else 1)
EOF
