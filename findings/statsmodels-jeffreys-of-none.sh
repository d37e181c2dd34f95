#!/usr/bin/env bash
# `proportion_confint(0, n, method="jeffreys")` begins above 0, and that of n of n ends below 1: an interval of a share
# that was observed leaves out what was observed. All other methods take the end in.
# What one expects: 0 of 10 does not speak against a share of 0; the authors who recommend Jeffreys' interval set the
# ends to 0 and 1 in these two cases (Brown, Cai and DasGupta 2001).
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  statsmodels==0.15.0 numpy==2.4.6 scipy==1.17.1 || exit 2
venv/bin/python - <<'EOF'
import sys

import statsmodels
from statsmodels.stats.proportion import proportion_confint

METHODS = ("normal", "agresti_coull", "beta", "wilson", "binom_test", "jeffreys")
low = {method: proportion_confint(0, 10, method=method)[0] for method in METHODS}
high = {method: proportion_confint(10, 10, method=method)[1] for method in METHODS}
outside = [method for method in METHODS if low[method] > 0 or high[method] < 1]
print("statsmodels", statsmodels.__version__)
print("expected: every interval of 0 of 10 holds 0, and of 10 of 10 holds 1")
print("found:    not of", ", ".join(outside), "which begins at", low["jeffreys"], "and ends at", high["jeffreys"])
sys.exit(0 if outside == ["jeffreys"] else 1)
EOF
