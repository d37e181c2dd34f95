#!/usr/bin/env bash
# An observation of NaN is in no bucket of a histogram, +Inf included, and so in no count, but makes its sum NaN for
# good: every later mean is NaN. A summary counts it.
# What one expects: it is counted under +Inf or refused, so that errors are seen by their number.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  prometheus-client==0.26.0 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

from prometheus_client import CollectorRegistry, Histogram, Summary

registry = CollectorRegistry()
histogram, summary = Histogram("h", "", buckets=(1, 2), registry=registry), Summary("s", "", registry=registry)
for metric in (histogram, summary):
    metric.observe(float("nan"))
    metric.observe(0.5)
count, total = registry.get_sample_value("h_count"), registry.get_sample_value("h_sum")
print("prometheus-client", importlib.metadata.version("prometheus-client"))
print("expected: two observations of each")
print(f"found:    {count:.0f} of the histogram, sum {total}; {registry.get_sample_value('s_count'):.0f} of the summary")
sys.exit(0 if count == 1 and total != total and registry.get_sample_value("s_count") == 2 else 1)
EOF
