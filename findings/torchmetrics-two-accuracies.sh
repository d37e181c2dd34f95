#!/usr/bin/env bash
# Accuracy(task="multiclass") is the share of right answers and MulticlassAccuracy the mean over classes; so are the
# functions of these names. Whichever one imports, nothing in the call says which it is.
# What one expects: the first is a short name for the second: it makes an object of that class.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torchmetrics==1.9.0 torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

import torch
import torchmetrics
from torchmetrics.classification import MulticlassAccuracy

answers, labels = torch.tensor([0, 0, 0, 0, 1, 2]), torch.tensor([0, 0, 0, 0, 2, 2])
short, long = torchmetrics.Accuracy(task="multiclass", num_classes=3), MulticlassAccuracy(num_classes=3)
found = round(short(answers, labels).item(), 3), round(long(answers, labels).item(), 3)
print("torchmetrics", importlib.metadata.version("torchmetrics"))
print("expected: 0.833 both times, 5 of 6")
print("found:    Accuracy", found[0], "and MulticlassAccuracy", found[1], "; one class:", type(short) is type(long))
sys.exit(0 if found == (0.833, 0.5) and type(short) is type(long) else 1)
EOF
