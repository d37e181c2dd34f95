#!/usr/bin/env bash
# One empty or cut-off file in PROMETHEUS_MULTIPROC_DIR ends every scrape of all processes. Such a file is there for a
# moment whenever a process starts, and stays if its disk was full then.
# What one expects: a file without values has no values to add.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  prometheus-client==0.26.0 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import os
import sys
import tempfile

os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder = tempfile.mkdtemp(dir=".")
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

Counter("answers", "Answers of this process.").inc()


def scrape():
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    try:
        return generate_latest(registry).decode().splitlines()[-1]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


before = scrape()
open(os.path.join(folder, "counter_99999999.db"), "wb").close()
after = scrape()
print("prometheus-client", importlib.metadata.version("prometheus-client"))
print("expected:", before)
print("found:   ", after)
sys.exit(0 if before == "answers_total 1.0" and after.startswith("error: unpack_from") else 1)
EOF
