#!/usr/bin/env bash
# On a CPU OpenVINO computes int64 in 32 bits and float64 in 32 bits, while types of inputs and outputs still say 64:
# large ids are cut to their low half, even where they are only reshaped; two ids that differ in the upper half are
# equal.
# What one expects: 64-bit values stay 64-bit values, or compiling refuses them.
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


large = np.array([2**40 + 5, 2**33], np.int64)
flat = compiled(lambda x: ops.reshape(x, np.array([-1]), False), [2], np.int64)
equal = compiled(lambda x: ops.equal(x, np.array([5, 0], np.int64)), [2], np.int64)
double = compiled(lambda x: ops.add(x, np.float64(1e-12)), [1], np.float64)
ids, same, sum_ = flat(large)[0], equal(large)[0], double(np.array([1.0]))[0]
print("openvino", ov.__version__)
print(f"expected: {large.tolist()} come back, are not equal to [5, 0], and 1 + 1e-12 is not 1")
print(f"found:    {ids.tolist()} as {ids.dtype}, equal {same.tolist()}, 1 + 1e-12 - 1 = {sum_[0] - 1} as {sum_.dtype}")
as_stated = ids.tolist() == [5, 0] and same.all() and sum_[0] == 1
sys.exit(0 if as_stated and (ids.dtype, sum_.dtype) == (np.int64, np.float64) else 1)
EOF
