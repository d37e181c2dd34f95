#!/usr/bin/env bash
# reset_classifier draws the new classifier from another distribution than create_model does for the same network: ten
# times narrower for EfficientNet and MobileNet, twice as wide for a ViT. A classifier that was reset to be retrained
# does not start where a fresh one starts.
# What one expects: resetting gives the classifier a network is created with.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  timm==1.0.31 torch==2.14.1 torchvision==0.29.1 || exit 2
venv/bin/python - <<'EOF'
import sys

import timm
import torch

print("timm", timm.__version__)
print("expected: the same standard deviation created and reset")
ratios = {}
for name in ("efficientnet_b0", "mobilenetv3_small_100", "vit_tiny_patch16_224", "resnet18"):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    created = model.get_classifier().weight.std().item()
    model.reset_classifier(10)
    reset = model.get_classifier().weight.std().item()
    ratios[name] = reset / created
    print(f"{name}: created {created:.4f}, reset {reset:.4f}")
sys.exit(0 if ratios["efficientnet_b0"] < 0.2 and ratios["mobilenetv3_small_100"] < 0.2 else 1)
EOF
