#!/usr/bin/env bash
# On a CPU OpenVINO's ReLU, clamp and max pooling turn NaN into a number, and so a network with a damaged weight or
# pixel gives answers that look healthy. PyTorch hands NaN on to the logits.
# What one expects: NaN in, NaN out, so that a check for finite logits finds it.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import numpy as np
import openvino as ov
from openvino import opset13 as ops

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}


def compiled(function, shape, dtype=np.float32):
    given = ops.parameter(shape, dtype)
    return ov.Core().compile_model(ov.Model([function(given)], [given]), "CPU", OPTIONS)


nan = np.array([[np.nan, 1.0]], np.float32)
image = np.array([np.nan, 1, 2, 3], np.float32).reshape(1, 1, 2, 2)
weight = np.array([[np.nan, 1.0], [1.0, 1.0]], np.float32)


def pooled(x):
    return ops.max_pool(x, [1, 1], [1, 1], [0, 0], [0, 0], [2, 2]).output(0)


found = {
    "relu": compiled(ops.relu, [1, 2])(nan)[0],
    "clamp": compiled(lambda x: ops.clamp(x, 0.0, 6.0), [1, 2])(nan)[0],
    "max pooling": compiled(pooled, [1, 1, 2, 2])(image)[0],
    "layer with a NaN weight, then relu": compiled(
        lambda x: ops.relu(ops.matmul(x, ops.constant(weight), False, False)), [1, 2]
    )(np.ones((1, 2), np.float32))[0],
}
print("openvino", ov.__version__)
print("expected: NaN in every one")
for name, value in found.items():
    print(f"{name}: {value.ravel().tolist()}")
sys.exit(0 if all(np.isfinite(value).all() for value in found.values()) else 1)
EOF
