#!/usr/bin/env bash
# Where every value of one sample is above every value of the other, `brunnermunzel` has no p-value: NaN, with a warning
# about a division. A single exchanged value gives a small one.
# What one expects: samples that do not overlap are the strongest evidence there is, so the smallest p-value.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  scipy==1.17.1 numpy==2.4.6 || exit 2
venv/bin/python -W ignore - <<'EOF'
import sys

import numpy as np
import scipy
from scipy.stats import brunnermunzel, mannwhitneyu

members, others = np.arange(20.0), np.arange(20.0) + 20
nearly = np.append(others[1:], 18.5)
apart, overlap = brunnermunzel(members, others).pvalue, brunnermunzel(members, nearly).pvalue
print("scipy", scipy.__version__)
print("expected: 20 values against 20 larger ones have a smaller p-value than where one is exchanged")
print(f"found:    {apart}, and {overlap:.2g} with one exchanged; Mann-Whitney: {mannwhitneyu(members, others).pvalue:.2g}")
sys.exit(0 if np.isnan(apart) and overlap < 0.001 else 1)
EOF
