#!/usr/bin/env bash
# The same Resize takes other pixels of a tensor than of an image of Pillow where it takes nearest ones, and where it
# is bicubic it differs by many steps at edges; of floats it goes below 0 and above 1. Only bilinear agrees, to one
# step.
# What one expects: transforms v2 do the same to tensors and to images, up to rounding.
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
from torchvision.transforms import InterpolationMode as Mode
from torchvision.transforms.v2.functional import resize, to_image

row = Image.fromarray(np.arange(8, dtype=np.uint8)[None].repeat(8, 0))
of_image = np.asarray(resize(row, [3, 3], interpolation=Mode.NEAREST))[0].tolist()
of_tensor = resize(to_image(row), [3, 3], interpolation=Mode.NEAREST)[0, 0].tolist()
edges = Image.fromarray((np.random.default_rng(0).random((131, 97)) < 0.5).astype(np.uint8) * 255)
differences = {}
for mode in (Mode.BILINEAR, Mode.BICUBIC):
    one = np.asarray(resize(edges, [112, 112], interpolation=mode)).astype(int)
    differences[mode.value] = int(abs(one - resize(to_image(edges), [112, 112], interpolation=mode)[0].numpy()).max())
floats = resize(to_image(edges).float() / 255, [112, 112], interpolation=Mode.BICUBIC)
print("torchvision", torchvision.__version__, "torch", torch.__version__)
print("expected: the same pixels; differences of 1 at most; floats between 0 and 1")
print("found:    nearest", of_image, "of an image and", of_tensor, "of a tensor; differences", differences, end="")
print(f"; floats from {floats.min():.2f} to {floats.max():.2f}")
wide = floats.min() < -0.01 and floats.max() > 1.01
sys.exit(0 if of_image != of_tensor and differences["bilinear"] <= 1 < 4 < differences["bicubic"] and wide else 1)
EOF
