#!/usr/bin/env bash
# timm's schedulers count warm-up as part of the schedule: with 3 epochs of warm-up before a cosine of 10 the rate
# jumps from 0.67 to 0.79 and falls from there; the full rate is never used. With warmup_prefix=True it is.
# What one expects: warm-up rises to the full rate, and the cosine starts from it.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  timm==1.0.31 torch==2.14.1 torchvision==0.29.1 || exit 2
venv/bin/python - <<'EOF'
import sys

import timm
import torch
from timm.scheduler import CosineLRScheduler


def rates(**options):
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], 1.0)
    scheduler, found = CosineLRScheduler(optimiser, t_initial=10, warmup_t=3, **options), []
    for epoch in range(10):
        scheduler.step(epoch)
        found.append(round(optimiser.param_groups[0]["lr"], 2))
    return found


plain, prefixed = rates(), rates(warmup_prefix=True)
print("timm", timm.__version__)
print("expected: 0.0 0.33 0.67 1.0 ...")
print("found:   ", *plain)
print("with warmup_prefix=True:", *prefixed)
sys.exit(0 if max(plain) < 0.8 and max(prefixed) == 1 else 1)
EOF
