#!/usr/bin/env bash
# np.quantile is NaN at an order statistic that is finite if its neighbour is infinite: it multiplies the distance to
# the neighbour by 0.
# What one expects: the quantile ½ of an odd number of values is the median, whatever lies beyond.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import numpy as np

np.seterr(all="ignore")
print("numpy", np.__version__)
print("expected: median and quantile(½) agree on an odd number of values")
differing = 0
for values in ([1.0, 2.0, np.inf], [-np.inf, 0.0, np.inf], [np.inf] * 3):
    median, quantile = np.median(values), np.quantile(values, 0.5)
    differing += not np.isnan(median) and np.isnan(quantile)
    print(f"{values!s:24} median {median}, quantile {quantile}")
print("method='inverted_cdf':  ", np.quantile([1.0, 2.0, np.inf], 0.5, method="inverted_cdf"))
sys.exit(0 if differing == 3 else 1)
EOF
