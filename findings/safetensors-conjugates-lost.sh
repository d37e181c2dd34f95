#!/usr/bin/env bash
# safetensors.torch saves the memory of a conjugated or negated tensor, which torch changes only when it is read:
# conj() comes back unconjugated, with the other sign of every imaginary part, without an error.
# What one expects: values come back as they were, or an error as for other tensors that are views.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  safetensors==0.8.0 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import safetensors
import safetensors.torch
import torch


def back(tensor):
    return safetensors.torch.load(safetensors.torch.save({"x": tensor}))["x"]


spectrum = torch.fft.rfft(torch.tensor([1.0, 2.0, 4.0, 8.0]))
conjugated, negated = spectrum.conj(), torch.tensor([1 + 2j]).conj().imag
resolved = torch.equal(back(conjugated.resolve_conj()), conjugated)
print("safetensors", safetensors.__version__, "torch", torch.__version__)
print("expected:", conjugated.tolist(), "and", negated.tolist())
print("found:   ", back(conjugated).tolist(), "and", back(negated).tolist(), "; after resolve_conj() right:", resolved)
lost = torch.equal(back(conjugated), spectrum) and torch.equal(back(negated), -negated)
sys.exit(0 if lost and resolved else 1)
EOF
