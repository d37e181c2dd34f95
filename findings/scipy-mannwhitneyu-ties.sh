#!/usr/bin/env bash
# With ties mannwhitneyu takes the normal distribution even for three values against three, and finds p = 0.047 where
# no arrangement of six values has less than 0.1. Asked for method="exact" it counts as if there were no ties, without
# a warning.
# What one expects: small samples are tested exactly, with ties as well, or there is a warning that they are not.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  scipy==1.17.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys
import warnings

import numpy as np
import scipy
from scipy import stats

warnings.simplefilter("error")
by_default = stats.mannwhitneyu([0, 0, 0], [1, 1, 1]).pvalue
permuted = stats.mannwhitneyu([0, 0, 0], [1, 1, 1], method=stats.PermutationMethod()).pvalue
one, other = [1, 2, 2, 3, 3], [2, 3, 3, 4, 4]
called_exact = stats.mannwhitneyu(one, other, method="exact").pvalue
truly_exact = stats.mannwhitneyu(one, other, method=stats.PermutationMethod()).pvalue
print("scipy", scipy.__version__, "numpy", np.__version__)
print(f"expected: {permuted:.3f} for 0 0 0 against 1 1 1; {truly_exact:.3f} for {one} against {other}")
print(f"found:    {by_default:.3f}; {called_exact:.3f} with method='exact'")
sys.exit(0 if by_default < 0.05 < permuted and called_exact < truly_exact - 0.01 else 1)
EOF
