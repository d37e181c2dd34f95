#!/usr/bin/env bash
# datumaro's importer of CelebA makes a class of every number up to the largest in `identity_CelebA.txt`, whether that
# person has an image or not: 2 people are 13 classes, and whoever was removed keeps a class.
# What one expects: as many classes as there are people in the list.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  datumaro==1.13.12 || exit 2
venv/bin/python -W ignore - <<'EOF'
import sys
from pathlib import Path

import datumaro
from datumaro.components.annotation import AnnotationType
from PIL import Image

Path("Anno").mkdir()
Path("Img/img_celeba").mkdir(parents=True)
for name in ("000001.jpg", "000002.jpg", "000003.jpg"):
    Image.new("RGB", (8, 8)).save(Path("Img/img_celeba") / name)
Path("Anno/identity_CelebA.txt").write_text("000001.jpg 12\n000002.jpg 5\n000003.jpg 12\n")
data = datumaro.Dataset.import_from(".", "celeba")
classes = data.categories()[AnnotationType.label]
used = {classes[note.label].name for item in data for note in item.annotations}
print("datumaro", datumaro.__version__)
print("expected: 2 classes of", len(data), "images")
print(f"found:    {len(classes)} classes, of which {len(used)} have images: {', '.join(sorted(used))}")
sys.exit(0 if len(classes) == 13 and used == {"class-5", "class-12"} else 1)
EOF
