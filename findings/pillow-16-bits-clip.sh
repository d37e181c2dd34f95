#!/usr/bin/env bash
# Pillow converts grey images of 16 bits by cutting at 255: all but the darkest 0.4 per cent of the values become white,
# without an error.
# What one expects: `convert("L")` and `convert("RGB")` scale 65535 to 255.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  pillow==13.0.0 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import io
import sys

import numpy as np
import PIL
from PIL import Image


def grey(value):
    """What a PNG of 16 bits with one value becomes, in grey and in colour."""
    file = io.BytesIO()
    Image.fromarray(np.full((2, 2), value, np.uint16)).save(file, "PNG")
    opened = Image.open(io.BytesIO(file.getvalue()))
    return opened.convert("L").getpixel((0, 0)), opened.convert("RGB").getpixel((0, 0))[0]


found = {value: grey(value) for value in (100, 1000, 32768, 65535)}
print("pillow", PIL.__version__)
print("expected:", {value: (value >> 8, value >> 8) for value in found})
print("found:   ", found)
sys.exit(0 if found == {100: (100, 100), 1000: (255, 255), 32768: (255, 255), 65535: (255, 255)} else 1)
EOF
