#!/usr/bin/env bash
# datumaro's importer of LFW loads the images that `pairs.txt` names. Somebody who stands in `people.txt` and has images,
# but in no pair, becomes a class without images, and without a word.
# What one expects: the images of all people of the list; the pairs are a protocol over them.
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

images, notes = Path("test/images"), Path("test/annotations")
notes.mkdir(parents=True)
people = {"Ann_One": 2, "Bo_Two": 1, "Cy_Three": 3}
for person, count in people.items():
    (images / person).mkdir(parents=True)
    for number in range(1, count + 1):
        Image.new("RGB", (8, 8)).save(images / person / f"{person}_{number:04d}.jpg")
(notes / "people.txt").write_text("1\n3\n" + "".join(f"{name}\t{count}\n" for name, count in people.items()))
(notes / "pairs.txt").write_text("1\t1\nAnn_One\t1\t2\nAnn_One\t1\tBo_Two\t1\n")
data = datumaro.Dataset.import_from(".", "lfw")
classes = [label.name for label in data.categories()[AnnotationType.label]]
loaded = sorted(item.id for item in data)
print("datumaro", datumaro.__version__)
print("expected:", sum(people.values()), "images of", len(people), "people")
print("found:   ", len(loaded), "images:", ", ".join(loaded), "and the classes", ", ".join(classes))
sys.exit(0 if len(loaded) == 3 and classes == list(people) else 1)
EOF
