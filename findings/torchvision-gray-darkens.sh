#!/usr/bin/env bash
# Making an image of bytes grey darkens it by one step where it is a tensor: white becomes 254, and an image that was
# grey already is another one after each pass. The three weights add up to 0.9999, and the fraction is cut off.
# What one expects: grey stays as it is, and white 255, as for an image of Pillow.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torchvision==0.29.1 torch==2.14.1 pillow==13.0.0 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2.functional import rgb_to_grayscale

grey = torch.arange(256, dtype=torch.uint8).repeat(3, 1).reshape(3, 16, 16)
once = rgb_to_grayscale(grey)[0].flatten().int()
again = rgb_to_grayscale(rgb_to_grayscale(grey, num_output_channels=3))[0].flatten().int()
pillow = np.asarray(rgb_to_grayscale(Image.fromarray(grey.permute(1, 2, 0).numpy()))).ravel()
some = [1, 128, 255]
print("torchvision", torchvision.__version__)
print("expected:", some, "stay")
print("found:   ", once[some].tolist(), "once,", again[some].tolist(), "twice; of Pillow", pillow[some].tolist())
darker = (once[1:] == torch.arange(255)).all() and again[255] == 253
sys.exit(0 if darker and (pillow == np.arange(256)).all() else 1)
EOF
