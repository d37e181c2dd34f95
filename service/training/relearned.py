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

MOST = 50.0
"""Bound of a margin: the probability of another class is e⁻⁵⁰."""


def relearned(spec: TrialSpec, faces: Faces, model: torch.nn.Module) -> NDArray[np.float32]:
    """Margins of the scored rows after each step on the half of them that is learned again, `(STEPS, n_examples)`.

    A model that a method has broken may blow up in these steps. Its margins are bounded by ± `MOST`, and 0 where an
    answer is no number: what it was worth is told by the margins before.
    """
    scored = Examples.from_arrays(faces.images[spec.scored], faces.labels[spec.scored])
    own, _ = halves(len(scored))
    rows = spec.retain[retained(len(own), len(spec.retain))].ravel()
    beside = Examples.from_arrays(faces.images[rows], faces.labels[rows])
    device, labels = resolve_device(spec.device), faces.labels[spec.scored]
    learners = relearn(model, scored.subset(own), beside, recipe=spec.recipe, device=device)
    return np.array([_bounded(logits(learner, scored.images), labels) for learner in learners], dtype=np.float32)


def _bounded(answers: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    usable = np.isfinite(answers).all(axis=1)
    found = np.zeros(len(labels))
    if usable.any():
        found[usable] = np.clip(audit.margins(answers[usable], labels[usable]), -MOST, MOST)
    return found
