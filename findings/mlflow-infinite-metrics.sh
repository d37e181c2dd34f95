#!/usr/bin/env bash
# MLflow's store in a database keeps an infinite metric as the largest float: inf comes back as
# 1.7976931348623157e308, which is finite to every check for a training that diverged. NaN comes back as NaN.
# What one expects: what was logged comes back, or is refused.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  mlflow-skinny==3.17.2 sqlalchemy==2.1.9 alembic==1.20.1 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import logging
import math
import os
import sys

os.environ["MLFLOW_TRACKING_URI"] = "sqlite:///runs.db"
logging.disable(logging.WARNING)
import mlflow

with mlflow.start_run() as run:
    mlflow.log_metric("loss", math.inf)
    mlflow.log_metric("other", math.nan)
metrics = mlflow.get_run(run.info.run_id).data.metrics
print("mlflow-skinny", importlib.metadata.version("mlflow-skinny"))
print("expected: inf and nan")
print("found:   ", metrics["loss"], "and", metrics["other"])
sys.exit(0 if metrics["loss"] == sys.float_info.max and math.isnan(metrics["other"]) else 1)
EOF
