#!/usr/bin/env bash
# locust rounds response times before it makes percentiles of them (above 1 s to 100 ms), so that a percentile can be above
# the maximum beside it, which is not rounded; and it takes the next larger value: with 99 answers of 1 ms and one of
# 5 s the 99th percentile is 5 s.
# What one expects: percentiles of what was measured, none above the maximum; the 99th is reached by 99 of 100 answers.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  locust==2.47.0 || exit 2
venv/bin/python - <<'EOF'
import sys
from importlib.metadata import version

from locust.stats import RequestStats


def measured(times):
    stats = RequestStats()
    for milliseconds in times:
        stats.log_request("GET", "/", milliseconds, 0)
    return stats.get("/", "GET")


close, one_slow = measured([1051] * 100), measured([1] * 99 + [5000])
found = {
    "p99, maximum of 1051": (close.get_response_time_percentile(0.99), close.max_response_time),
    "p95 of 1 to 100": measured(range(1, 101)).get_response_time_percentile(0.95),
    "p99 of 99 times 1 and 5000": one_slow.get_response_time_percentile(0.99),
}
print("locust", version("locust"))
print("expected: 1051, 1051; 95; 1")
print("found:   ", found)
sys.exit(0 if [*found.values()] == [(1100, 1051), 96, 5000] else 1)
EOF
