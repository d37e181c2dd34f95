#!/usr/bin/env bash
# safetensors.numpy.save writes an array's memory, not its values: a transposed, Fortran-ordered or strided array
# comes back with other numbers in the same shape, without a word. (safetensors.torch refuses such tensors.)
# What one expects: values come back as they were, or an error.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  safetensors==0.8.0 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

import numpy as np
import safetensors.numpy

array = np.arange(6, dtype=np.float32).reshape(2, 3)
cases = {
    "transposed": array.T,
    "Fortran order": np.asfortranarray(array),
    "every second": array[:, ::2],
    "contiguous": array,
}
print("safetensors", importlib.metadata.version("safetensors"))
print("expected: every array comes back equal")
equal = {}
for name, saved in cases.items():
    loaded = safetensors.numpy.load(safetensors.numpy.save({"x": saved}))["x"]
    equal[name] = bool(np.array_equal(saved, loaded))
    print(f"{name}: saved {saved.tolist()}, loaded {loaded.tolist()}")
sys.exit(0 if [name for name in equal if equal[name]] == ["contiguous"] else 1)
EOF
