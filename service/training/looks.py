"""What a qualification also looks at in a trial's model: features of its forget set, and everybody else's margins.

Both need a sample of retained subjects, the same for all models that are compared: the features of the forget set are
set beside theirs (`audit.statistics.features`), and their margins tell who became more exposed
(`audit.statistics.exposure`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

import audit
from audit.errors import AuditError
from service.training.spec import Rows, TrialSpec, open_images
from unlearning.errors import FeaturesError
from unlearning.faces import Faces
from unlearning.faces.views import VIEWS
from unlearning.features import features_and_logits
from unlearning.training import Examples, logits

SAMPLE = 1000
"""Retained images, of whole subjects, that are looked at; a few more where the last subject has many."""


@dataclass(frozen=True)
class Looks:
    """What was seen of one model.

    Attributes:
        descriptors: of the scored images, float32 `(n_descriptors, n_scored)`; none where the network has no
            penultimate features or they cannot be compared.
        others: T of each subject of the sample, float32 `(n_subjects,)`, in the order of `subjects_of`.
    """

    descriptors: NDArray[np.float32] | None
    others: NDArray[np.float32]


def sample_of(faces: Faces, retain: Rows) -> Rows:
    """Rows of retained subjects, drawn whole and always the same from the same data, until there are `SAMPLE`."""
    people = faces.subject_of[retain]
    order = np.random.default_rng(0).permutation(np.unique(people))
    counts = np.bincount(people)[order]
    chosen = order[: int(np.searchsorted(np.cumsum(counts), SAMPLE)) + 1]
    return np.asarray(retain[np.isin(people, chosen)])


def subjects_of(faces: Faces, sample: Rows) -> NDArray[np.int64]:
    """Positions in `faces.people` of the sample's subjects, ascending."""
    return np.unique(faces.subject_of[sample])


def look(spec: TrialSpec, model: torch.nn.Module) -> Looks | None:
    """What the specification wants to be looked at; none if nothing, or if a retained margin is not a number."""
    if spec.sample is None:
        return None
    from audit.statistics.spread import tail_mean  # SciPy, which other trials do not need

    faces = open_images(spec.images)
    sample, scored = spec.sample, spec.scored
    try:
        kept, answers = _seen(model, faces, faces.images[sample], sample)
        features = [_seen(model, faces, view(faces.images[scored]), scored)[0] for view in VIEWS.values()]
        found = audit.descriptors(
            np.array(features), faces.labels[scored], faces.subject_of[scored], kept, faces.labels[sample]
        ).astype(np.float32)
    except FeaturesError:
        answers = logits(model, Examples.from_arrays(faces.images[sample], faces.labels[sample]).images)
        found = None
    except AuditError:  # one class only is retained, or features are not finite
        found = None
    people = faces.subject_of[sample]
    try:
        margins = audit.margins(answers, faces.labels[sample])
    except AuditError:
        return None
    others = [tail_mean(margins[None, people == person]) for person in subjects_of(faces, sample)]
    return Looks(found, np.array(others, dtype=np.float32))


def _seen(
    model: torch.nn.Module, faces: Faces, images: NDArray[np.uint8], rows: Rows
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return features_and_logits(model, Examples.from_arrays(images, faces.labels[rows]).images)
