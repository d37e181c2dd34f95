#!/usr/bin/env bash
# With CACHE_DIR, compile_model of a path answers with old weights after the .bin file beside the .xml was exchanged
# for a newer one of the same size. Without a cache, or by read_model, the new ones are used.
# What one expects: new weights in the same place are noticed, by their time or content.
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


def save(name, number):
    given = ops.parameter([1000], np.float32)
    ov.save_model(ov.Model([ops.add(given, np.full(1000, number, np.float32))], [given]), f"{name}.xml", False)


def answer(network, **options):
    return ov.Core().compile_model(network, "CPU", OPTIONS | options)(question)[0][0].item()


save("model", 1)
first = answer("model.xml", CACHE_DIR="cache")
save("new", 2)
os.replace("new.bin", "model.bin")
cached, plain = answer("model.xml", CACHE_DIR="cache"), answer("model.xml")
read = answer(ov.Core().read_model("model.xml"), CACHE_DIR="cache")
print("openvino", ov.__version__)
print("expected: 1.0 and, once the weights were exchanged, 2.0")
print(f"found:    {first}, then {cached} with the cache, {plain} without, {read} by read_model with the cache")
sys.exit(0 if (first, cached, plain, read) == (1, 1, 2, 2) else 1)
EOF
