#!/usr/bin/env bash
# A search that is resumed with the seed it was begun with tries the same settings once more, random ones as those of
# TPE's first trials: the sampler begins anew and does not look at what was tried.
# What one expects: a seeded search of 3 and 3 trials is the seeded search of 6.
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


def search(name, *parts):
    for trials in parts:
        study = optuna.create_study(
            storage="sqlite:///trials.db",
            study_name=name,
            load_if_exists=True,
            sampler=optuna.samplers.TPESampler(seed=0),
        )
        study.optimize(lambda trial: trial.suggest_float("rate", 0, 1), trials)
    return [round(trial.params["rate"], 3) for trial in study.trials]


whole, parts = search("whole", 6), search("parts", 3, 3)
print("optuna", optuna.__version__)
print("expected:", *whole)
print("found:   ", *parts)
sys.exit(0 if parts == whole[:3] * 2 and len(set(whole)) == 6 else 1)
EOF
