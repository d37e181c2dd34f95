#!/usr/bin/env bash
# `torch.onnx.export` puts weights, from a kilobyte on, into a second file that is called like the first and `.data`, to
# which the first refers by that name. A network that was moved away before the next export answers with the new weights.
# What one expects: an .onnx file of a small network is the network; what was moved away stays what it was.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 onnx==1.23.2 onnxscript==0.7.2 onnxruntime==1.32.0 numpy==2.4.6 || exit 2
venv/bin/python -W ignore - <<'EOF'
import logging
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch

logging.disable(logging.WARNING)


def export(weight):
    layer = torch.nn.Linear(4000, 1, bias=False)
    torch.nn.init.constant_(layer.weight, weight)
    torch.onnx.export(layer.eval(), (torch.ones(1, 4000),), "model.onnx", verbose=False)


def answer(name):
    session = onnxruntime.InferenceSession(name, providers=["CPUExecutionProvider"])
    return float(session.run(None, {session.get_inputs()[0].name: np.ones((1, 4000), np.float32)})[0].item())


export(1.0)
before = answer("model.onnx")
Path("model.onnx").rename("before.onnx")
export(2.0)
files = sorted(path.name for path in Path().glob("*.onnx*"))
moved, new = answer("before.onnx"), answer("model.onnx")
print("torch", torch.__version__)
print("expected: before.onnx, model.onnx; the answers 4000 before and of the one moved, 8000 of the new one")
print(f"found:    {', '.join(files)}; {before:g} before, {moved:g} of the one moved, {new:g} of the new one")
sys.exit(0 if "model.onnx.data" in files and (before, moved, new) == (4000, 8000, 8000) else 1)
EOF
