#!/usr/bin/env bash
# ONNX Runtime's sigmoid of float32 is exactly 0 below some -18, where the value is 0.00000001, and log of it minus
# infinity: a network that ends in logsigmoid, exported from PyTorch, answers -inf for -28.
# What one expects: float32 holds numbers down to 1e-38, and sigmoid(-20) is 2e-9, as in numpy and PyTorch.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

given = np.array([-10.0, -17, -20, -28, -80], np.float32)
info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [5]) for name in "xyz"]
nodes = [helper.make_node("Sigmoid", ["x"], ["y"]), helper.make_node("Log", ["y"], ["z"])]
model = helper.make_model(
    helper.make_graph(nodes, "g", info[:1], info[1:]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
)
session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
sigmoid, log = session.run(None, {"x": given})
right = 1 / (1 + np.exp(-given.astype(np.float64)))
print("onnxruntime", onnxruntime.__version__)
print("of      ", given.tolist())
print("expected:", [f"{value:.1e}" for value in right])
print("found:   ", [f"{value:.1e}" for value in sigmoid], "and its log", log.tolist())
sys.exit(0 if sigmoid[0] > 0 and not sigmoid[2:].any() and np.isneginf(log[2:]).all() else 1)
EOF
