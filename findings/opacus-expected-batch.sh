#!/usr/bin/env bash
# make_private divides gradients, and their noise, by a batch size of its own: len(data) / len(loader), cut down. A loader
# of 10 examples in batches of 4 gives 3 and a sampling rate of 1/3; with drop_last it gives 5 and 1/2.
# What one expects: the loader's batch size is the expected one: 4.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  opacus==1.6.0 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys
import warnings

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")
from opacus import PrivacyEngine


def expected_batch(drop_last):
    model = nn.Linear(3, 2)
    loader = DataLoader(TensorDataset(torch.ones(10, 3), torch.zeros(10)), batch_size=4, drop_last=drop_last)
    _, optimiser, private = PrivacyEngine().make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        data_loader=loader,
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    return optimiser.expected_batch_size, round(private.sample_rate, 3)


kept, dropped = expected_batch(False), expected_batch(True)
print("opacus", importlib.metadata.version("opacus"), "torch", torch.__version__)
print("expected: 4, a rate of 0.4")
print("found:   ", *kept, "; with drop_last", *dropped)
sys.exit(0 if kept == (3, 0.333) and dropped == (5, 0.5) else 1)
EOF
