#!/usr/bin/env bash
# roc_auc_score(max_fpr=0.1) does not return the area up to a false positive rate of 0.1: it is stretched so that
# guessing gives 0.5. Scores that are no better than guessing have 0.50 where the area is 0.006, and a ranking that is
# wholly wrong still has 0.47.
# What one expects: the area under the curve up to max_fpr, at most 0.1 and 0.005 for guessing.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1 || exit 2
venv/bin/python - <<'EOF'
import sys

import numpy as np
import sklearn
from sklearn.metrics import roc_auc_score, roc_curve

rng = np.random.default_rng(0)
labels, scores = rng.integers(0, 2, 2000), rng.normal(size=2000)
rates, powers, _ = roc_curve(labels, scores)
grid = np.linspace(0, 0.1, 1001)
area = np.trapezoid(np.interp(grid, rates, powers), grid)
guessed = roc_auc_score(labels, scores, max_fpr=0.1)
wrong = roc_auc_score([0] * 50 + [1] * 50, [1.0] * 50 + [0.0] * 50, max_fpr=0.1)
print("scikit-learn", sklearn.__version__)
print(f"expected: {area:.4f} for random scores, 0 for the wrong way round")
print(f"found:    {guessed:.4f} and {wrong:.4f}")
sys.exit(0 if area < 0.01 and 0.45 < guessed < 0.55 and 0.45 < wrong < 0.5 else 1)
EOF
