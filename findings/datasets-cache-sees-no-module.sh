#!/usr/bin/env bash
# `map` takes the answers of an imported function from its cache although the function was changed: of a function of a
# module it knows the name only.
# What one expects: a function that was changed is another function; the cache notices it.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  datasets==5.2.0 || exit 2
cat > steps.py <<'EOF'
def scale(row):
    return {"scaled": row["x"] * 10}
EOF
cat > run.py <<'EOF'
import sys

import datasets
from steps import scale

datasets.disable_progress_bars()
use_cache = sys.argv[1:] != ["anew"]
print(datasets.load_from_disk("saved").map(scale, load_from_cache_file=use_cache)["scaled"][0])
EOF
venv/bin/python -c "import datasets; datasets.Dataset.from_dict({'x': [1]}).save_to_disk('saved')" 2>log || exit 1
first=$(venv/bin/python run.py)
sed -i 's/10/100/' steps.py
rm -rf __pycache__
second=$(venv/bin/python run.py)
third=$(venv/bin/python run.py anew)
echo "datasets 5.2.0"
echo "expected: 10, and 100 after the function was changed"
echo "found:    $first, then $second; without the cache $third"
test "$first" = 10 -a "$second" = 10 -a "$third" = 100
