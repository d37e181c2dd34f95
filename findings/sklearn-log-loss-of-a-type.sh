#!/usr/bin/env bash
# log_loss of the same predictions is 36 for float64 and 16 for float32: probabilities are cut off at the smallest
# step of their type. A float32 network's confident mistakes cost less than half.
# What one expects: 0 and 1 are the same numbers in both types, and so the loss is the same; or infinite.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  scikit-learn==1.9.1 numpy==2.4.6 scipy==1.17.1 || exit 2
venv/bin/python - <<'EOF'
import sys

import numpy as np
import sklearn
from sklearn.metrics import log_loss

certain = np.array([[0.0, 1.0], [1.0, 0.0]])
wide, narrow = log_loss([0, 1], certain), log_loss([0, 1], certain.astype(np.float32))
print("scikit-learn", sklearn.__version__)
print("expected: one loss for two wrong answers given with certainty")
print(f"found:    {wide:.2f} of float64, {narrow:.2f} of float32")
sys.exit(0 if wide > 36 and narrow < 16 else 1)
EOF
