#!/usr/bin/env bash
# `datasets` guesses types of metadata.csv and list files: ids 007 and 7 become one, 1e5 becomes 100000.0, NA becomes
# none. Asking for text by `features` keeps the digits and still loses NA. The builder `csv` can be told both, also by
# a README.md beside the list.
# What one expects: columns of a CSV are text until one asks for numbers; with `features` nothing is guessed.
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
from datasets import Features, Image, Value, load_dataset
from PIL import Image as Picture

datasets.disable_progress_bars()
text = {name: Value("string") for name in ("user_id", "label")}
CARD = "---\nconfigs:\n- config_name: default\n  data_files: metadata.csv\n  keep_default_na: false\n  features:\n"
CARD += "".join(f"  - {{name: {name}, dtype: string}}\n" for name in ("file_name", *text)) + "---\n"


def ids(*wanted, **options):
    folder = Path(f"faces-{'-'.join(wanted)}")
    folder.mkdir(exist_ok=True)
    rows = [f"{number}.png,{user_id},yes" for number, user_id in enumerate(wanted)]
    for number in range(len(rows)):
        Picture.new("L", (4, 4)).save(folder / f"{number}.png")
    (folder / "metadata.csv").write_text("\n".join(["file_name,user_id,label", *rows]) + "\n")
    if options.pop("card", False):
        (folder / "README.md").write_text(CARD)
        found = load_dataset(str(folder))
    elif options.pop("csv", False):
        found = load_dataset("csv", data_files=str(folder / "metadata.csv"), **options)
    else:
        found = load_dataset("imagefolder", data_dir=str(folder), **options)
    return list(found["train"]["user_id"])


guessed, large = ids("007", "7", "NA"), ids("1e5", "2")
asked = ids("007", "7", "NA", features=Features({"image": Image(), **text}))
columns = Features({"file_name": Value("string"), **text})
whole = ids("007", "7", "NA", csv=True, keep_default_na=False, features=columns)
print("datasets", datasets.__version__)
print("expected: ['007', '7', 'NA'] each time, and ['1e5', '2']")
print("imagefolder:               ", guessed, large)
print("with features:             ", asked)
print("csv, features, keep_default_na=False:", whole)
carded = ids("7", "007", "NA", card=True)
print("a README.md that says so:  ", carded)
as_stated = guessed == [7.0, 7.0, None] and large == [1e5, 2.0] and asked == ["007", "7", None]
sys.exit(0 if as_stated and whole == ["007", "7", "NA"] and carded == ["7", "007", "NA"] else 1)
EOF
