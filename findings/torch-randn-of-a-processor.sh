#!/usr/bin/env bash
# Of one seed randn gives other bits on a processor without AVX2 (here: with ATEN_CPU_CAPABILITY=default) than on one
# with it, and so do initial weights drawn from a normal distribution. They differ in the last bits; trainings drift
# apart from there. Uniform numbers, dropout and permutations are the same.
# What one expects: a seed gives the same random numbers on every processor; only sums are rounded differently.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import os
import subprocess
import sys

import torch

if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
    sys.exit(2)
CODE = """
import torch
from torch import nn
draws = {
    "randn": lambda: torch.randn(4096),
    "kaiming_normal_": lambda: nn.init.kaiming_normal_(torch.empty(64, 64)),
    "rand": lambda: torch.rand(4096),
    "bernoulli": lambda: torch.empty(4096).bernoulli_(0.5),
    "randperm": lambda: torch.randperm(4096),
}
for name, draw in draws.items():
    torch.manual_seed(0)
    torch.save(draw(), f"{name}.{torch.backends.cpu.get_cpu_capability()}")
"""
for capability in ("default", "avx2"):
    subprocess.run([sys.executable, "-c", CODE], env=os.environ | {"ATEN_CPU_CAPABILITY": capability}, check=True)
print("torch", torch.__version__)
print("expected: the same bits with and without AVX2")
differ = []
for name in ("randn", "kaiming_normal_", "rand", "bernoulli", "randperm"):
    one, other = torch.load(f"{name}.DEFAULT"), torch.load(f"{name}.AVX2")
    share = (one != other).float().mean().item()
    print(f"{name}: {share:.0%} of the numbers differ, by up to {(one - other).abs().max().item():.1g}")
    differ += [name] if share else []
sys.exit(0 if differ == ["randn", "kaiming_normal_"] else 1)
EOF
