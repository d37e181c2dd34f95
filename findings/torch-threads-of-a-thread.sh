#!/usr/bin/env bash
# `torch.set_num_threads` reaches the thread that calls it and threads that have not computed yet; one that has keeps
# its own number.
# What one expects: a setting of the process, so that a server can set it once everything is up.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys
import threading

import torch

torch.set_num_threads(2)
found, computed, changed = [], threading.Event(), threading.Event()


def serve():
    torch.ones(1_000_000).sum()
    computed.set()
    changed.wait()
    found.append(torch.get_num_threads())


early = threading.Thread(target=serve)
early.start()
computed.wait()
torch.set_num_threads(1)
late = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
changed.set()
early.join()
late.start()
late.join()
print("torch", torch.__version__)
print("expected: after set_num_threads(1) every thread computes with 1")
print(f"found:    main {torch.get_num_threads()}, a thread that had computed {found[0]}, a new one {found[1]}")
sys.exit(0 if found == [2, 1] else 1)
EOF
