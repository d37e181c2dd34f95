#!/usr/bin/env bash
# Where there is no room, torch.save raises RuntimeError ("unexpected pos"), safetensors its own error and OpenVINO
# RuntimeError, none of which is an OSError; NumPy's OSError has no errno. Code that waits for room by `except OSError` or
# by `errno.ENOSPC` takes a full disk for a fault of the program.
# What one expects: OSError with the errno of the system, as `open(path, "wb").write` raises. Here a limit on the size of
# files stands for the disk: EFBIG instead of ENOSPC.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  safetensors==0.8.0 openvino==2026.4.1 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python -W ignore - <<'EOF'
import resource
import sys

import numpy as np
import openvino as ov
import torch
from safetensors.torch import save_file

N = 100_000
network = ov.convert_model(torch.nn.Linear(300, 300), example_input=torch.zeros(1, 300))
ways = {
    "open": lambda: open("plain", "wb").write(bytes(4 * N)),
    "torch": lambda: torch.save(torch.ones(N), "weights.pt"),
    "safetensors": lambda: save_file({"w": torch.ones(N)}, "weights.safetensors"),
    "openvino": lambda: ov.save_model(network, "network.xml", compress_to_fp16=False),
    "numpy": lambda: np.save("array.npy", np.ones(N)),
}
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # Python ignores the signal that comes with the error


def told_of(write):
    try:
        write()
    except Exception as error:
        return type(error).__name__, getattr(error, "errno", None) is not None, isinstance(error, OSError)


found = {name: told_of(write) for name, write in ways.items()}
print("torch", torch.__version__)
print("expected: each an OSError with an errno")
print("found:    error, has an errno, is an OSError:", found)
sys.exit(
    0
    if found
    == {
        "open": ("OSError", True, True),
        "torch": ("RuntimeError", False, False),
        "safetensors": ("SafetensorError", False, False),
        "openvino": ("RuntimeError", False, False),
        "numpy": ("OSError", False, True),
    }
    else 1
)
EOF
