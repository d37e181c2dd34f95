#!/usr/bin/env bash
# ov.save_model writes half precision unless told otherwise, and cuts what half precision does not hold: a weight of
# 1e6 becomes 65504, one of 1e-9 becomes 0, without a warning.
# What one expects: a saved network gives the answers of the one that was saved, at least within rounding.
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


weights = ops.constant(np.array([1e6, 1e-9, 3.0], np.float32))
given = ops.parameter([3], np.float32)
model = ov.Model([ops.multiply(given, weights)], [given])
ones, core = np.ones(3, np.float32), ov.Core()
answers = {"before": core.compile_model(model, "CPU", OPTIONS)(ones)[0]}
ov.save_model(model, "half.xml")
ov.save_model(model, "full.xml", compress_to_fp16=False)
for name in ("half", "full"):
    answers[name] = core.compile_model(f"{name}.xml", "CPU", OPTIONS)(ones)[0]
print("openvino", ov.__version__)
print("expected: three times", answers["before"].tolist())
print("save_model(model, path):                        ", answers["half"].tolist())
print("save_model(model, path, compress_to_fp16=False):", answers["full"].tolist())
is_whole = np.array_equal(answers["before"], answers["full"])
sys.exit(0 if is_whole and answers["half"].tolist() == [65504.0, 0.0, 3.0] else 1)
EOF
