#!/usr/bin/env bash
# Where the processor multiplies bfloat16 (flag avx512_bf16 or amx_bf16), OpenVINO computes a float32 network in it
# unless told otherwise: the same file answers otherwise on another machine, a thousand times further off than rounding.
# What one expects: a network of float32 weights is computed in float32, as PyTorch does.
set -u
grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo || exit 2
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import numpy as np
import openvino as ov
from openvino import opset8 as ops

rng = np.random.default_rng(0)
images, weights = (rng.normal(size=(256, 256)).astype(np.float32) for _ in range(2))
given = ops.parameter([-1, 256], np.float32)
network = ov.Model([ops.matmul(given, ops.constant(weights), False, False)], [given], "network")


def off_by(**options):
    compiled = ov.Core().compile_model(network, "CPU", options)
    answer = compiled(images)[0]
    exact = images.astype(np.float64) @ weights.astype(np.float64)
    return float(np.abs(answer - exact).max() / np.abs(exact).max())


default, asked = off_by(), off_by(INFERENCE_PRECISION_HINT="f32")
print("openvino", ov.__version__)
print("expected: off by about 1e-7 of the largest value")
print(f"found:    off by {default:.0e}; with INFERENCE_PRECISION_HINT=f32 by {asked:.0e}")
sys.exit(0 if default > 1e-4 and asked < 1e-5 else 1)
EOF
