#!/usr/bin/env bash
# A folder a person, one of them named like `alice_test`: `datasets` takes the word for a split, and everybody whose
# folder has no such word is not loaded, without a word. An image that metadata.csv does not name is left out as well.
# What one expects: every image of the folder is loaded; only folders named exactly train or test are splits.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  datasets==5.2.0 pillow==13.0.0 || exit 2
venv/bin/python - <<'EOF'
import os
import sys
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(Path("home").resolve())}
import datasets
from datasets import load_dataset
from PIL import Image

datasets.disable_progress_bars()


def count(folder, *names, metadata=None):
    for name in names:
        Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(Path(folder, name))
    if metadata:
        Path(folder, "metadata.csv").write_text(metadata)
    return {split: len(rows) for split, rows in load_dataset("imagefolder", data_dir=folder).items()}


people = count("people", "alice_test/0.png", "bob/0.png", "train-carol/0.png")
names = count("names", "a/x_test_1.png", "a/y.png", "a/z_train.png")
listed = count("listed", "0.png", "1.png", metadata="file_name,user_id\n0.png,a\n")
print("datasets", datasets.__version__)
print("expected: all three images of three people, all three of one person, both of a folder with a list")
print("found:   ", people, names, listed)
as_stated = people == names == {"train": 1, "test": 1} and listed == {"train": 1}
sys.exit(0 if as_stated else 1)
EOF
