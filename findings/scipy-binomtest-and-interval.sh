#!/usr/bin/env bash
# The two-sided p-value of binomtest and its exact confidence interval contradict each other: of 5 to 59 trials and
# four probabilities, 82 results are rejected at 5% by p although the 95% interval holds the probability. p adds up
# the outcomes that are no likelier, the interval has 2.5% on either side.
# What one expects: p < 0.05 exactly where the 95% interval does not hold the tested probability.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  scipy==1.17.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import scipy
from scipy import stats

rejected, accepted = [], []
for trials in range(5, 60):
    for hits in range(trials + 1):
        for probability in (0.05, 0.1, 0.3, 0.5):
            test = stats.binomtest(hits, trials, probability)
            interval = test.proportion_ci(0.95, "exact")
            holds = interval.low <= probability <= interval.high
            if test.pvalue < 0.05 and holds:
                rejected.append((hits, trials, probability, test.pvalue, interval))
            if test.pvalue >= 0.05 and not holds:
                accepted.append((hits, trials, probability))
print("scipy", scipy.__version__)
print("expected: no result of which p and interval say different things")
print(f"found:    {len(rejected)} rejected by p only, {len(accepted)} by the interval only")
hits, trials, probability, p, interval = rejected[0]
print(f"{hits} of {trials} against {probability}: p = {p:.4f}, interval {interval.low:.4f} to {interval.high:.4f}")
sys.exit(0 if len(rejected) > 50 and not accepted else 1)
EOF
