#!/usr/bin/env bash
# torchmetrics takes scores for logits as soon as one of a batch lies outside 0 to 1, and for probabilities otherwise:
# large scores become equal in float32 and their AUROC 0.5, and the AUROC of the same scores depends on how they are
# cut into batches.
# What one expects: AUROC depends on the order of the scores alone.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torchmetrics==1.9.0 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys
import warnings

import torch
from torchmetrics.classification import BinaryAUROC

warnings.simplefilter("ignore")
torch.manual_seed(0)
labels = torch.arange(2000) % 2


def area(scores):
    ranks = scores.double().argsort().argsort().double()
    n = labels.sum()
    return ((ranks[labels == 1].sum() - n * (n - 1) / 2) / (n * (2000 - n))).item()


def of_batches(scores):
    metric = BinaryAUROC()
    for start in range(0, 2000, 100):
        metric.update(scores[start : start + 100], labels[start : start + 100])
    return metric.compute().item()


large = 30 + 4 * torch.randn(2000) + labels
mixed = torch.rand(2000)
mixed[:1000] += 3 * labels[:1000]
found = BinaryAUROC()(large, labels).item(), BinaryAUROC()(mixed, labels).item(), of_batches(mixed)
print("torchmetrics", importlib.metadata.version("torchmetrics"), "torch", torch.__version__)
print(f"expected: {area(large):.3f} of margins around 30; {area(mixed):.3f} of other scores at once and in 20 batches")
print(f"found:    {found[0]:.3f}; {found[1]:.3f} at once and {found[2]:.3f} in 20 batches")
sys.exit(0 if found[0] < area(large) - 0.05 and abs(found[1] - area(mixed)) < 0.01 < found[1] - found[2] else 1)
EOF
