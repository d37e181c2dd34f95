"""Margins of a trial's model after it learned a little of the scored images again (`unlearning.relearning`)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

import audit
from service.training.spec import TrialSpec
from unlearning.devices import resolve_device
from unlearning.faces import Faces
from unlearning.relearning import STEPS, halves, relearn, retained
from unlearning.training import Examples, logits


def relearned(spec: TrialSpec, faces: Faces, model: torch.nn.Module) -> NDArray[np.float32]:
    """Margins of the scored rows after each step, float32 `(2 · STEPS, n_examples)`.

    The first half of them with the half of the images learned again that an image is not in, the second with its own.
    Of a single image both are of itself: there is no other half.
    """
    scored = Examples.from_arrays(faces.images[spec.scored], faces.labels[spec.scored])
    found = np.empty((2, STEPS, len(scored)), dtype=np.float32)
    for mine, others in _folds(len(scored)):
        rows = spec.retain[retained(len(mine), len(spec.retain))].ravel()
        beside = Examples.from_arrays(faces.images[rows], faces.labels[rows])
        learners = relearn(model, scored.subset(mine), beside, recipe=spec.recipe, device=resolve_device(spec.device))
        for step, learner in enumerate(learners):
            margins = audit.margins(logits(learner, scored.images), scored.labels.numpy())
            found[0, step, others], found[1, step, mine] = margins[others], margins[mine]
    return found.reshape(2 * STEPS, len(scored))


def _folds(n_images: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Which images are learned again, and which others are looked at."""
    first, second = halves(n_images)
    return [(first, second), (second, first)] if len(first) else [(second, second)]
