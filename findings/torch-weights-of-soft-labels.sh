#!/usr/bin/env bash
# cross_entropy with class weights divides by the weights' sum if labels are numbers of classes, and by the number of
# examples if they are probabilities: turning labels into one-hot vectors, for smoothing or mixing images, changes the
# loss and so the learning rate.
# What one expects: a label and its one-hot vector are the same target and have the same loss.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch
from torch.nn.functional import cross_entropy, one_hot

torch.manual_seed(0)
logits, labels, weight = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 0]), torch.tensor([1.0, 2.0, 5.0])
soft = one_hot(labels, 3).float()
hard_loss, soft_loss = cross_entropy(logits, labels, weight=weight), cross_entropy(logits, soft, weight=weight)
plain = torch.allclose(cross_entropy(logits, labels), cross_entropy(logits, soft))
print("torch", torch.__version__)
print(f"expected: {hard_loss:.4f} both times")
print(f"found:    {hard_loss:.4f} and {soft_loss:.4f}; without weights they agree: {plain}")
sys.exit(0 if plain and torch.allclose(soft_loss / hard_loss, weight[labels].mean()) and soft_loss > hard_loss else 1)
EOF
