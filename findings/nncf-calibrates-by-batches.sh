#!/usr/bin/env bash
# nncf.quantize averages the extremes of calibration batches: the same images in batches of 10 give another network than
# one at a time, and only whole batches are looked at, of which `subset_size` (300) counts. A NaN in an image is passed
# over without a word.
# What one expects: ranges are those of the images, however they are dealt out; a NaN is refused.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  nncf==3.4.0 openvino==2026.4.1 numpy==2.4.6 || exit 2
venv/bin/python -W ignore - <<'EOF'
import logging
import sys

import nncf
import numpy as np
import openvino as ov
from openvino import opset8 as ops

nncf.set_log_level(logging.ERROR)
rng = np.random.default_rng(0)
first, second = ((rng.normal(size=(64, 64)) / 8).astype(np.float32) for _ in range(2))
images = rng.normal(size=(200, 64)).astype(np.float32)
broken = images.copy()
broken[3, 0] = np.nan


def quantized(data):
    given = ops.parameter([-1, 64], np.float32)
    hidden = ops.relu(ops.matmul(given, ops.constant(first), False, False))
    network = ov.Model([ops.matmul(hidden, ops.constant(second), False, False)], [given], "network")
    made = nncf.quantize(network, nncf.Dataset(data))
    return ov.Core().compile_model(made, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0].copy()


one_by_one = quantized(np.split(images, 200))
again, by_tens, with_nan = quantized(np.split(images, 200)), quantized(np.split(images, 20)), quantized(np.split(broken, 200))
found = {
    "again": bool((again == one_by_one).all()),
    "in batches of 10": bool((by_tens == one_by_one).all()),
    "with a NaN, numbers": bool(np.isfinite(with_nan).all()),
}
print("nncf", nncf.__version__)
print("expected: the same network again and in batches of 10; an error for NaN")
print("found:   ", found, f"batches change answers by up to {np.abs(by_tens - one_by_one).max():.2g}")
sys.exit(0 if [*found.values()] == [True, False, True] else 1)
EOF
