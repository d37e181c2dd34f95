#!/usr/bin/env bash
# timm's resolve_model_data_config and create_transform follow the pretrained model's size and colours, not those of the
# network that was made: one for grey images of 64 × 64 pixels gets a transform to three channels of 224 × 224.
# What one expects: the configuration of a model's data is that of the model, as its `num_classes` is.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  timm==1.0.31 torch==2.14.1 torchvision==0.29.1 || exit 2
venv/bin/python - <<'EOF'
import sys

import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

model = timm.create_model("vit_tiny_patch16_224", img_size=64, in_chans=1, num_classes=5).eval()
config = resolve_model_data_config(model)
image = create_transform(**config)(Image.new("RGB", (64, 64)))
answer = tuple(model(torch.zeros(1, 1, 64, 64)).shape)
print("timm", timm.__version__)
print("expected: a model of (1, 64, 64) has a transform to (1, 64, 64)")
print(f"found:    it answers {answer}; input_size {config['input_size']}, transformed {tuple(image.shape)}")
sys.exit(0 if (answer, config["input_size"], tuple(image.shape[-2:])) == ((1, 5), (3, 224, 224), (224, 224)) else 1)
EOF
