#!/usr/bin/env bash
# `fetch_lfw_people` keeps the images it has read in a cache of its own beside the folder and answers from it: a person
# whose images were removed from the folder is still there, and one who was added is not.
# What one expects: images come from the folder; whoever is taken out of it is gone.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1 pillow==13.0.0 || exit 2
venv/bin/python -W ignore - <<'EOF'
import shutil
import sys
from pathlib import Path

import sklearn
from PIL import Image
from sklearn.datasets import fetch_lfw_people

home = Path("data").resolve()
people = home / "lfw_home" / "lfw_funneled"
for name in ("pairs.txt", "pairsDevTrain.txt", "pairsDevTest.txt"):
    people.mkdir(parents=True, exist_ok=True)
    (people.parent / name).write_text("0\n")


def add(person):
    (people / person).mkdir()
    Image.new("RGB", (250, 250), (200, 100, 50)).save(people / person / f"{person}_0001.jpg")


def loaded():
    found = fetch_lfw_people(data_home=home, download_if_missing=False, min_faces_per_person=0)
    return found.target_names.tolist(), len(found.images)


add("Ann_One"), add("Bo_Two")
loaded()
shutil.rmtree(people / "Ann_One")
add("Cy_Three")
names, count = loaded()
kept = sum(path.stat().st_size for path in (home / "lfw_home" / "joblib").rglob("*") if path.is_file())
print("scikit-learn", sklearn.__version__)
print("expected: Bo Two, Cy Three")
print("found:   ", ", ".join(names), f"({count} images; the cache has {kept} bytes)")
sys.exit(0 if names == ["Ann One", "Bo Two"] and count == 2 and kept > 0 else 1)
EOF
