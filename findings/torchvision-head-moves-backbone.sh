#!/usr/bin/env bash
# With one seed, a torchvision network for 11 classes starts from another backbone than one for 10: weights are drawn
# anew after the classifier has drawn its own.
# What one expects: the classifier is the last layer, so all before it is the same for a given seed.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 torchvision==0.29.1 || exit 2
venv/bin/python - <<'EOF'
import sys
import warnings

import torch
import torchvision

warnings.simplefilter("ignore")


def start(name, n_classes):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None, num_classes=n_classes).state_dict()


print("torchvision", torchvision.__version__)
print("expected: with one seed only the classifier differs")
moved = []
for name in ("resnet18", "mobilenet_v3_small", "vgg11"):
    ten, eleven = start(name, 10), start(name, 11)
    same_shape = [key for key in ten if ten[key].shape == eleven[key].shape]
    moved.append([key for key in same_shape if not torch.equal(ten[key], eleven[key])])
    print(f"{name}: {len(moved[-1])} other tensors differ, {moved[-1][0] if moved[-1] else 'none'} first")
sys.exit(0 if all(moved) else 1)
EOF
