#!/usr/bin/env bash
# A PyTorch model that the Adversarial Robustness Toolbox wraps is left in another mode than it was in: `predict` ends
# a training's dropout and batch statistics, `fit` leaves them on, and the model's own answers after `fit` are random.
# What one expects: a call to measure a model leaves it as it was; after `fit` the model can be asked.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  adversarial-robustness-toolbox==1.20.1 torch==2.14.1 scikit-learn==1.9.1 packaging==26.3 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import logging
import sys
import warnings

import numpy as np
import torch
from torch import nn

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
from art.estimators.classification import PyTorchClassifier

rng = np.random.default_rng(0)
images, labels = rng.normal(size=(40, 4)).astype(np.float32), rng.integers(0, 3, 40)


def wrapped(trains):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train(trains)
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    return model, PyTorchClassifier(model, nn.CrossEntropyLoss(), (4,), 3, optimizer=optimiser)


asked, classifier = wrapped(True)
classifier.predict(images)
fitted, classifier = wrapped(False)
classifier.fit(images, labels, nb_epochs=1, batch_size=16)
question = torch.from_numpy(images)
steady = torch.equal(fitted(question), fitted(question))
print("adversarial-robustness-toolbox", importlib.metadata.version("adversarial-robustness-toolbox"))
print("expected: training after predict, eval after fit, as before")
print("found:    training", asked.training, "after predict,", fitted.training, "after fit; two answers equal:", steady)
sys.exit(0 if not asked.training and fitted.training and not steady else 1)
EOF
