#!/usr/bin/env bash
# Random numbers are drawn in the order of memory: of one seed dropout switches off other places of an image in the
# layout channels_last than of the same image in the usual layout, and `normal_` fills a weight with other numbers.
# (Conv2d.reset_parameters fills a contiguous copy and is the same.)
# What one expects: the layout of memory makes things faster, and rounds at most differently.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  torch==2.14.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import torch
from torch import nn
from torch.nn.functional import dropout


def both(draw, tensor):
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        results.append(draw(tensor.to(memory_format=layout)))
    return (results[0] != results[1]).float().mean().item()


masks = both(lambda images: dropout(images, 0.5), torch.ones(2, 3, 8, 8))
weights = both(lambda weight: nn.init.normal_(weight), torch.empty(8, 3, 3, 3))
print("torch", torch.__version__)
print("expected: the same values in both layouts")
print(f"found:    {masks:.0%} of the values of dropout and {weights:.0%} of a normal weight differ")
sys.exit(0 if masks > 0.3 and weights > 0.5 else 1)
EOF
