"""Margins of a trial's model after it learned a little of the scored images again (`unlearning.relearning`)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import audit
from service.training.spec import TrialSpec
from unlearning.devices import resolve_device
from unlearning.faces import Faces
from unlearning.relearning import halves, relearn, retained
from unlearning.training import Examples, logits


def relearned(spec: TrialSpec, faces: Faces, model: torch.nn.Module) -> NDArray[np.float32]:
    """Margins of the scored rows after each step on the half of them that is learned again, `(STEPS, n_examples)`."""
    scored = Examples.from_arrays(faces.images[spec.scored], faces.labels[spec.scored])
    own, _ = halves(len(scored))
    rows = spec.retain[retained(len(own), len(spec.retain))].ravel()
    beside = Examples.from_arrays(faces.images[rows], faces.labels[rows])
    device, labels = resolve_device(spec.device), faces.labels[spec.scored]
    learners = relearn(model, scored.subset(own), beside, recipe=spec.recipe, device=device)
    found = [audit.margins(logits(learner, scored.images), labels) for learner in learners]
    return np.array(found, dtype=np.float32)
