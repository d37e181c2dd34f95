#!/usr/bin/env bash
# proportions_ztest takes the variance of the observed proportion, not of the tested one: 0 of 10 against one half has
# a variance of 0 and p = 0, and so has 0 of 1. Two groups with 0 of 10 each give NaN.
# What one expects: the z-test of the textbooks, with the variance under the null hypothesis: p = 0.0016 and 0.32.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  statsmodels==0.15.0 numpy==2.4.6 scipy==1.17.1 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys
import warnings

import numpy as np
from statsmodels.stats.proportion import proportions_ztest

warnings.simplefilter("ignore")
ten, one = proportions_ztest(0, 10, 0.5)[1], proportions_ztest(0, 1, 0.5)[1]
known = [proportions_ztest(0, n, 0.5, prop_var=0.5)[1] for n in (10, 1)]
both = proportions_ztest([0, 0], [10, 10])[1]
print("statsmodels", importlib.metadata.version("statsmodels"))
print(f"expected: p = {known[0]:.4f} for 0 of 10, {known[1]:.4f} for 0 of 1")
print(f"found:    p = {ten}, {one}; two groups without any: {both}")
sys.exit(0 if ten == one == 0 and np.isnan(both) and 0.001 < known[0] < 0.002 else 1)
EOF
