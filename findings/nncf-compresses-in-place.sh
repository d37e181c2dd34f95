#!/usr/bin/env bash
# nncf.compress_weights changes the network it is given: what was kept as the original to compare with is compressed,
# too, and the two always agree. nncf.quantize leaves it alone.
# What one expects: like nncf.quantize it returns a new network.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  nncf==3.4.0 openvino==2026.4.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import logging
import sys
import warnings

import numpy as np
import openvino as ov
from openvino import opset13 as ops

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
import nncf

rng = np.random.default_rng(0)
question = rng.normal(size=(4, 64)).astype(np.float32)


def network():
    given = ops.parameter([-1, 64], np.float32)
    return ov.Model([ops.matmul(given, rng.normal(size=(64, 64)).astype(np.float32), False, False)], [given])


def changed_by(change):
    original = network()
    before = ov.compile_model(original, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(question)[0]
    result = change(original)
    after = ov.compile_model(original, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(question)[0]
    return result is original, float(abs(before - after).max())


compressed = changed_by(nncf.compress_weights)
quantized = changed_by(lambda original: nncf.quantize(original, nncf.Dataset([question])))
print("nncf", importlib.metadata.version("nncf"), "openvino", ov.__version__)
print("expected: the original answers as before")
print(f"found:    it differs by {compressed[1]:.3f} after compress_weights, by {quantized[1]:.3f} after quantize")
sys.exit(0 if compressed[0] and compressed[1] > 0 and quantized == (False, 0) else 1)
EOF
