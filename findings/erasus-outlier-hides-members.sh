#!/usr/bin/env bash
# erasus counts members at 200 thresholds spread evenly over the losses: one image with a large loss puts all others
# between two of them, and its AUC says 0.5, "unlearned", of members that are told apart without an error. Where all
# losses are equal, `MIAMetric` says 0 and `MIASuite` 1, the order of the two sets.
# What one expects: the area depends on the order of the losses alone; equal losses have 0.5.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  erasus==0.2.0 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python -W ignore - <<'EOF'
import importlib.metadata
import logging
import sys

import torch
from torch.utils.data import DataLoader, TensorDataset

logging.disable(logging.WARNING)
from erasus.metrics.forgetting.mia import MIAMetric
from erasus.metrics.forgetting.mia_suite import MIASuite


class Answers(torch.nn.Module):
    """Its input is the logit of the right one of two classes."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, logits):
        return torch.stack([logits, torch.zeros_like(logits)], dim=1) * self.scale


def images(logits):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    return DataLoader(TensorDataset(logits, torch.zeros(len(logits), dtype=torch.long)), batch_size=10)


def areas(members, others):
    data = {"forget_data": images(members), "retain_data": images(others)}
    full = MIAMetric().compute(Answers(), **data)["mia_auc"]
    return full, MIASuite(attacks=["loss"]).compute(Answers(), **data)["mia_suite_mean_auc"]


members, others = torch.linspace(3, 4, 100), torch.linspace(-1, 0, 99)
plain, _ = areas(members, torch.cat([others, torch.tensor([-2.0])]))
outlier, _ = areas(members, torch.cat([others, torch.tensor([-1000.0])]))
equal = areas([1.0] * 8, [1.0] * 8)
print("erasus", importlib.metadata.version("erasus"))
print("expected: 1 and 1 where every member has a smaller loss; 0.5 and 0.5 where all are equal")
print(f"found:    {plain:.2f}, and {outlier:.2f} if one loss is 1000; equal: {equal[0]:g} and {equal[1]:g}")
sys.exit(0 if plain > 0.95 and outlier < 0.6 and equal == (0.0, 1.0) else 1)
EOF
