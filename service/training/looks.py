"""What is also looked at in a trial's model: features of its scored images, and everybody else's margins.

Both need a sample of retained subjects (`service.training.spec.sample_of`), the same for all models that are compared:
the features of the scored images are set beside theirs (`audit.statistics.features`), and their margins tell who became
more exposed (`audit.statistics.exposure`). Forward passes only: as many images as the sample has, and each scored one
in every view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

import audit
from audit.errors import AuditError
from audit.statistics.features import DESCRIPTORS
from service.training.spec import Rows, TrialSpec, open_images, subjects_of
from unlearning.errors import FeaturesError
from unlearning.faces import Faces
from unlearning.faces.views import VIEWS
from unlearning.features import features_and_logits
from unlearning.training import Examples, logits

TOGETHER = 256  # images whose features in all views are in memory at a time


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


def look(spec: TrialSpec, model: torch.nn.Module) -> Looks | None:
    """What the specification wants to be looked at; none if nothing, or if a retained margin is not a number."""
    if spec.sample is None:
        return None
    from audit.statistics.spread import tail_mean  # SciPy, which other trials do not need

    faces, sample = open_images(spec.images), spec.sample
    try:
        kept, answers = _seen(model, faces, faces.images[sample], sample)
        found = _descriptors(model, faces, spec.scored, kept, sample)
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


def _descriptors(
    model: torch.nn.Module, faces: Faces, rows: Rows, kept: NDArray[np.float32], sample: Rows
) -> NDArray[np.float32]:
    """Descriptors `(n_descriptors, n_rows)`; who is of the sample is set beside the sample without them."""
    people, found = faces.subject_of, np.empty((len(DESCRIPTORS), len(rows)), dtype=np.float32)
    of_sample = subjects_of(faces, sample)
    for part in _whole_subjects(people[rows]):
        some, whose = rows[part], people[rows[part]]
        features = np.array([_seen(model, faces, view(faces.images[some]), some)[0] for view in VIEWS.values()])
        for person in (-1, *np.intersect1d(whose, of_sample)):  # first all who are not of the sample
            mine = ~np.isin(whose, of_sample) if person < 0 else whose == person
            if mine.any():
                beside = people[sample] != person
                found[:, part[mine]] = audit.descriptors(
                    features[:, mine], faces.labels[some[mine]], whose[mine], kept[beside],
                    faces.labels[sample[beside]],
                )  # fmt: skip
    return found


def _whole_subjects(people: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Positions of the images of some subjects each time, about `TOGETHER` images or one subject's."""
    order = np.argsort(people, kind="stable")
    starts = np.flatnonzero(np.diff(people[order], prepend=-1))
    begin = 0
    for start, stop in pairwise([*starts.tolist(), len(order)]):
        if stop - begin > TOGETHER and start > begin:
            yield order[begin:start]
            begin = start
    yield order[begin:]


def _seen(
    model: torch.nn.Module, faces: Faces, images: NDArray[np.uint8], rows: Rows
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return features_and_logits(model, Examples.from_arrays(images, faces.labels[rows]).images)
