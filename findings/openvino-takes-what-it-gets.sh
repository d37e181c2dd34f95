#!/usr/bin/env bash
# OpenVINO's Python interface casts inputs to the network's type without a check (300 becomes 44 for a network of
# bytes), and a call without an input is answered with the one of the call before.
# What one expects: an error about the type, and one about the missing input.
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


bytes_ = compiled(lambda x: ops.convert(x, "f32"), [3], np.uint8)
cast = bytes_(np.array([300, -1, 7], np.int64))[0]
network = compiled(lambda x: ops.multiply(x, np.float32(2)), [3])
first = network(np.array([1, 2, 3], np.float32))[0].copy()
again = network({})[0]
print("openvino", ov.__version__)
print("expected: two errors")
print("found:    300, -1, 7 as bytes:", cast.tolist(), "; a call without input:", again.tolist())
sys.exit(0 if cast.tolist() == [44, 255, 7] and np.array_equal(first, again) else 1)
EOF
