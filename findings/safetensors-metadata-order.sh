#!/usr/bin/env bash
# safetensors writes metadata in another order each time: the same tensors with the same metadata give files of
# different bytes and digests. Without metadata, or with one entry, the bytes are the same.
# What one expects: a format made for digests and caches writes the same content as the same bytes.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  safetensors==0.8.0 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import hashlib
import importlib.metadata
import sys

import numpy as np
import safetensors.numpy


def n_digests(metadata):
    tensors = {"weight": np.ones(4, np.float32), "bias": np.zeros(2, np.float32)}
    files = [safetensors.numpy.save(tensors, metadata=metadata) for _ in range(40)]
    return len({hashlib.sha256(file).hexdigest() for file in files})


print("safetensors", importlib.metadata.version("safetensors"))
print("expected: one digest of 40 files each")
none, one, eight = n_digests(None), n_digests({"a": "1"}), n_digests({name: "1" for name in "abcdefgh"})
print(f"found:    {none} without metadata, {one} with one entry, {eight} with eight entries")
sys.exit(0 if none == one == 1 < eight else 1)
EOF
