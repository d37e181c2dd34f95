#!/usr/bin/env bash
# A JPEG with a second image behind it, as phones write for depth and brightness, opens as format MPO, also where only
# JPEG is allowed: a list of allowed formats and a comparison of `image.format` disagree.
# What one expects: Image.open(file, formats=["JPEG"]) gives a JPEG or an error.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  pillow==13.0.0 || exit 2
venv/bin/python - <<'EOF'
import io
import sys

import PIL
from PIL import Image

content = io.BytesIO()
image = Image.new("RGB", (16, 16), (200, 100, 50))
image.save(content, "MPO", save_all=True, append_images=[image])
opened = Image.open(io.BytesIO(content.getvalue()), formats=["JPEG"])
print("pillow", PIL.__version__)
print("expected: JPEG, or an error; the file begins as a JPEG:", content.getvalue()[:3].hex() == "ffd8ff")
print("found:   ", opened.format, type(opened).__name__, "of", opened.n_frames, "frames")
sys.exit(0 if opened.format == "MPO" else 1)
EOF
