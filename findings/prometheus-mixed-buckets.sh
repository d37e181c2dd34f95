#!/usr/bin/env bash
# Where processes of two versions share PROMETHEUS_MULTIPROC_DIR and one has fewer buckets of a histogram, its values
# count as larger than bounds that only the other has: le="1" misses 0.5.
# What one expects: a count under le="1" is of all values up to 1, or the bound is left out.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  prometheus-client==0.26.0 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import os
import subprocess
import sys
import tempfile

os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(dir=".")
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

code = "from prometheus_client import Histogram; Histogram('seconds', 'Time.', buckets={}).observe(0.5)"
for buckets in ([1, 2], [2]):
    subprocess.run([sys.executable, "-c", code.format(buckets)], check=True)
registry = CollectorRegistry()
MultiProcessCollector(registry)
lines = [line for line in generate_latest(registry).decode().splitlines() if "_bucket" in line]
print("prometheus-client", importlib.metadata.version("prometheus-client"))
print('expected: two values of 0.5, so le="1.0" is 2 or absent')
print("found:   ", lines)
sys.exit(0 if 'seconds_bucket{le="1.0"} 1.0' in lines and 'seconds_bucket{le="2.0"} 2.0' in lines else 1)
EOF
