"""What a qualification looks at besides the probe subject's margins: features, and everybody else's margins.

Both are reported and have no bar. Where something is missing (a network without penultimate features, models that were
made by an older version) nothing was measured, which is said as such and fails nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audit.errors import AuditError
from audit.statistics.exposure import ExposedByRuns, exposed_by_runs
from audit.statistics.features import FeaturesOfRuns, features_of_runs
from audit.statistics.margins import Array


@dataclass(frozen=True)
class LooksEvidence:
    """Arrays of models, none where there are none.

    Attributes:
        references, runs, originals: descriptors `(n_models, n_descriptors, n_images)`; the originals are others than
            the one that the runs began from.
        nothing_done: descriptors of that one, `(n_descriptors, n_images)`.
        others_references, others_runs: T of retained subjects, `(n_models, n_subjects)`, of the same subjects.
    """

    references: Array | None = None
    runs: Array | None = None
    originals: Array | None = None
    nothing_done: Array | None = None
    others_references: Array | None = None
    others_runs: Array | None = None


def judge_looks(
    evidence: LooksEvidence, seed: np.random.SeedSequence
) -> tuple[FeaturesOfRuns | None, ExposedByRuns | None]:
    """What the features and the retained subjects say of a method's runs; None for what cannot be judged."""
    features = exposed = None
    if evidence.references is not None and evidence.runs is not None and evidence.originals is not None:
        try:
            features = features_of_runs(
                evidence.runs, evidence.references, evidence.originals, seed, evidence.nothing_done
            )
        except AuditError:  # references that do not differ, as of a recipe that trains nothing
            features = None
    if evidence.others_references is not None and evidence.others_runs is not None:
        try:
            exposed = exposed_by_runs(evidence.others_runs, evidence.others_references)
        except AuditError:
            exposed = None
    return features, exposed
