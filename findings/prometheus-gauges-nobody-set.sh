#!/usr/bin/env bash
# With PROMETHEUS_MULTIPROC_DIR a process that only imports a gauge counts as 0: in the smallest of several it hides
# the 5 that was set, in the largest the -5. A gauge with set_function reports 0 as well. Gauges with labels are not
# there until a label is used.
# What one expects: a process that has set nothing has nothing to add, and a function is called by the scrape or
# refused.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  prometheus-client==0.26.0 || exit 2
cat > process.py <<'EOF'
import sys

from prometheus_client import Gauge

smallest, largest = Gauge("smallest", "", multiprocess_mode="min"), Gauge("largest", "", multiprocess_mode="max")
labelled = Gauge("labelled", "", ["k"], multiprocess_mode="min")
function = Gauge("function", "", multiprocess_mode="max")
function.set_function(lambda: 7)
if sys.argv[1:] == ["sets"]:
    smallest.set(5)
    largest.set(-5)
    labelled.labels("a").set(5)
EOF
mkdir files && export PROMETHEUS_MULTIPROC_DIR="$folder/files"
venv/bin/python process.py sets && venv/bin/python process.py imports || exit 1
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

registry = CollectorRegistry()
MultiProcessCollector(registry)
found = [registry.get_sample_value(name) for name in ("smallest", "largest", "function")]
labelled = registry.get_sample_value("labelled", {"k": "a"})
print("prometheus-client", importlib.metadata.version("prometheus-client"))
print("expected: smallest 5, largest -5, function 7")
print("found:    smallest", found[0], "largest", found[1], "function", found[2], "; with a label", labelled)
sys.exit(0 if found == [0, 0, 0] and labelled == 5 else 1)
EOF
