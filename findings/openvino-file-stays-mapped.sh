#!/usr/bin/env bash
# Weights that read_model has read are the .bin file's pages, also after compiling: overwriting the file in place
# changes what a compiled network answers. With ENABLE_MMAP=False they are not.
# What one expects: after compiling the file is not needed, may be overwritten (with zeros, to destroy it) or copied
# over.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  openvino==2026.4.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import os
import sys

import numpy as np
import openvino as ov
from openvino import opset13 as ops

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32"}
question = np.zeros(1000, np.float32)


def answer_after_overwriting(**options):
    given = ops.parameter([1000], np.float32)
    ov.save_model(ov.Model([ops.add(given, np.ones(1000, np.float32))], [given]), "model.xml", False)
    core = ov.Core()
    core.set_property(options)
    compiled = core.compile_model(core.read_model("model.xml"), "CPU", OPTIONS)
    before = compiled(question)[0][0].item()
    with open("model.bin", "r+b") as file:
        file.write(bytes(os.path.getsize("model.bin")))
    return before, compiled(question)[0][0].item()


mapped, read = answer_after_overwriting(), answer_after_overwriting(ENABLE_MMAP=False)
print("openvino", ov.__version__)
print("expected: 1.0 before and after the file was overwritten with zeros")
print("found:   ", *mapped, "; with ENABLE_MMAP=False:", *read)
sys.exit(0 if mapped == (1, 0) and read == (1, 1) else 1)
EOF
