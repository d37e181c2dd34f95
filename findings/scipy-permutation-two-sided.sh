#!/usr/bin/env bash
# permutation_test's two-sided p-value is twice the smaller one-sided one, not the share of permutations whose
# statistic is at least as far from zero. For lopsided data the two differ: 0.57 where every permutation is at least
# as far from zero as the observed difference of means.
# What one expects: p of a two-sided test is the share of |permuted statistic| >= |observed statistic|.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  scipy==1.17.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import numpy as np
import scipy
from scipy import stats


def difference(x, y, axis):
    return np.mean(x, axis=axis) - np.mean(y, axis=axis)


one, other = np.array([0.0, 0, 0, 0, 0, 10]), np.array([1.0, 2])
result = stats.permutation_test((one, other), difference, vectorized=True, n_resamples=10_000)
share = np.mean(np.abs(result.null_distribution) >= abs(result.statistic) - 1e-12)
print("scipy", scipy.__version__)
print(f"expected: p = {share:.3f}, the share of the {len(result.null_distribution)} permutations")
print(f"found:    p = {result.pvalue:.3f}")
sys.exit(0 if share == 1 and result.pvalue < 0.6 else 1)
EOF
