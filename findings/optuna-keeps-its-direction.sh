#!/usr/bin/env bash
# create_study(load_if_exists=True) takes the direction of the study that exists, without a word about the one asked
# for: a search for the smallest loss goes on as one for the largest. Enqueued values outside of a range are used,
# too.
# What one expects: another direction is an error, and a range is kept.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  optuna==5.0.0 || exit 2
venv/bin/python - <<'EOF'
import sys
import warnings

import optuna

warnings.simplefilter("ignore")
optuna.logging.set_verbosity(optuna.logging.ERROR)
where = {"storage": "sqlite:///trials.db", "study_name": "search"}
optuna.create_study(**where, direction="maximize")
study = optuna.create_study(**where, direction="minimize", load_if_exists=True)
study.enqueue_trial({"rate": 5.0})
study.optimize(lambda trial: trial.suggest_float("rate", 0, 1), 1)
rate = study.trials[0].params["rate"]
print("optuna", optuna.__version__)
print("expected: an error, and a rate between 0 and 1")
print("found:    direction", study.direction.name, "and rate", rate)
sys.exit(0 if study.direction.name == "MAXIMIZE" and rate == 5 else 1)
EOF
