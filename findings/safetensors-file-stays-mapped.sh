#!/usr/bin/env bash
# Tensors of `safetensors.torch.load_file` are the file's pages: overwriting the file in place changes loaded weights.
# What one expects: after loading the file is not needed, may be overwritten (with zeros, to destroy it) or copied
# over.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  safetensors==0.8.0 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import os
import sys

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch


def zero(path):
    with open(path, "r+b") as file:
        file.write(bytes(os.path.getsize(path)))


safetensors.torch.save_file({"weight": torch.ones(1000)}, "model.safetensors")
loaded = safetensors.torch.load_file("model.safetensors")["weight"]
with open("model.safetensors", "rb") as file:
    content = safetensors.torch.load(file.read())["weight"]
array = safetensors.numpy.load_file("model.safetensors")["weight"]
zero("model.safetensors")
print("safetensors", safetensors.__version__, "torch", torch.__version__)
print("expected: all loaded weights still are 1 after the file was overwritten with zeros")
print("torch.load_file:", loaded[0].item(), " torch.load of bytes:", content[0].item(), " numpy.load_file:", array[0])
sys.exit(0 if not loaded.any() and content.all() and np.all(array == 1) else 1)
EOF
