#!/usr/bin/env bash
# One p-value that is NaN makes all of multipletests' adjusted p-values by Benjamini-Hochberg NaN, while `reject`
# still says which are rejected. By Holm the others are adjusted as if the missing one were a test.
# What one expects: an error, or the missing one is left out of both answers.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  statsmodels==0.15.0 numpy==2.4.6 scipy==1.17.1 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys
import warnings

import numpy as np
from statsmodels.stats.multitest import multipletests

warnings.simplefilter("ignore")
values = [0.01, 0.02, 0.03, np.nan]
print("statsmodels", importlib.metadata.version("statsmodels"))
print("expected:", multipletests(values[:3], method="fdr_bh")[1], "and", multipletests(values[:3], method="holm")[1])
reject, adjusted = multipletests(values, method="fdr_bh")[:2]
_, holm = multipletests(values, method="holm")[:2]
print("found:   ", adjusted, "rejected", reject, "and", holm)
sys.exit(0 if np.isnan(adjusted).all() and reject.sum() == 3 and np.allclose(holm[0], 0.04) else 1)
EOF
