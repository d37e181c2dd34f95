#!/usr/bin/env bash
# Hashes of crop_resistant_hash are equal as soon as one segment of each is alike: an image equals itself upside down,
# though their distance is far from 0, and the distance depends on which of the two comes first.
# What one expects: == means distance 0, as for all other hashes of imagehash, and a distance is symmetric.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  imagehash==4.3.2 numpy==2.4.6 pillow==13.0.0 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

import imagehash
import numpy as np
from PIL import Image

rng = np.random.default_rng(0)
small = Image.fromarray(rng.integers(0, 256, (131, 97, 3), dtype=np.uint8)).resize((40, 50))
image = small.resize((203, 155), Image.Resampling.BICUBIC)
one, other = (imagehash.crop_resistant_hash(each) for each in (image, image.rotate(180)))
plain = imagehash.phash(image) == imagehash.phash(image.rotate(180))
print("imagehash", importlib.metadata.version("imagehash"))
print("expected: an image turned upside down has another hash, as by phash; equal by phash:", plain)
print(f"found:    equal: {one == other}; distances {one - other} and {other - one}; to itself {one - one}")
sys.exit(0 if one == other and one - other > 3 and one - other != other - one and not plain else 1)
EOF
