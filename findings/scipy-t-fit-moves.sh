#!/usr/bin/env bash
# stats.t.fit finds other degrees of freedom for the same data moved or scaled: 1,000 draws with 3 degrees give 3.2,
# moved by 100 they give thousands (a normal distribution), divided by 1,000 they give 2. Nothing says that the search
# failed.
# What one expects: moving data moves loc, scaling scales scale, and df stays: a fit of maximum likelihood.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  scipy==1.17.1 numpy==2.4.6 || exit 2
venv/bin/python - <<'EOF'
import sys

import scipy
from scipy import stats

data = stats.t.rvs(3, size=1000, random_state=0)
found = {}
for name, values in {"as drawn": data, "moved by 100": data + 100, "divided by 1000": data / 1000}.items():
    df, loc, scale = stats.t.fit(values)
    found[name] = df
    print(f"{name}: df {df:.4g}, loc {loc:.4g}, scale {scale:.4g}")
    at_three = stats.t.logpdf(values, *stats.t.fit(values, fdf=3)).sum()
    print(f"  log-likelihood {stats.t.logpdf(values, df, loc, scale).sum():.1f}; with df=3 given: {at_three:.1f}")
print("scipy", scipy.__version__)
print("expected: the same df three times")
df, moved, divided = found.values()
sys.exit(0 if 3 < df < 3.5 and moved > 100 and divided < 2.5 else 1)
EOF
