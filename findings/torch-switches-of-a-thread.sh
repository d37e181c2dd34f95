#!/usr/bin/env bash
# torch.set_default_device and set_flush_denormal are of the thread that calls them, unlike set_default_dtype: another
# thread makes its tensors on the CPU, and one that runs already goes on computing with numbers below 1e-38.
# What one expects: all three are settings of the process.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys
import threading

import torch

SMALL = 1e-40  # below the smallest normal float32
torch.set_num_threads(2)
begun, changed, seen = threading.Event(), threading.Event(), {}


def is_flushed(n=1):
    return float(((torch.full((n,), SMALL) * 1.0) == 0).float().mean())


def work():
    begun.set()
    changed.wait()
    seen.update(dtype=torch.zeros(1).dtype, device=str(torch.zeros(1).device), flushes=is_flushed())


thread = threading.Thread(target=work)
thread.start()
begun.wait()
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
made_here = str(torch.zeros(1).device)
torch.set_flush_denormal(True)
changed.set()
thread.join()
torch.set_default_device(None)
torch.set_default_dtype(torch.float32)
here = is_flushed()
print("torch", torch.__version__)
print("expected: the other thread has float64, meta, and takes 1e-40 for 0 as this one does")
print("found:   ", seen, f"here {made_here}, {here}")
sys.exit(0 if (str(seen["dtype"]), seen["device"], seen["flushes"], made_here, here) == ("torch.float64", "cpu", 0.0, "meta", 1.0) else 1)
EOF
