"""What is looked at besides the forget set's margins: features, and everybody else's margins.

A qualification asks both of a method's runs, an audit of the one candidate. Where something is missing (a network
without penultimate features, models that were made by an older version) nothing was measured, which is said as such and
fails nothing, unless the policy has a bar for it.

Tested in `tests/audit/test_checks.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from audit.errors import AuditError, BankError
from audit.statistics.exposure import ExposedByRuns, Exposure, exposed_by_runs, exposure
from audit.statistics.features import (
    FEWEST_ORIGINALS,
    FEWEST_REFERENCES,
    FeaturesGate,
    FeaturesOfRuns,
    features_gate,
    features_of_runs,
)
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


@dataclass(frozen=True)
class CandidateLooks:
    """What was looked at in a candidate and in the models it is compared with; None for what there is not.

    Attributes:
        candidate: descriptors `(n_descriptors, n_images)`.
        references, originals: descriptors `(n_models, n_descriptors, n_images)`; the candidate was made from none of
            the originals.
        others: T of retained subjects under the candidate, `(n_subjects,)`.
        others_references: of the same subjects under the references, `(n_models, n_subjects)`.
        features_lacking, others_lacking: why nothing can be said of features, or of retained subjects; empty: it can.
    """

    candidate: Array | None = None
    references: Array | None = None
    originals: Array | None = None
    others: Array | None = None
    others_references: Array | None = None
    features_lacking: str = ""
    others_lacking: str = ""


@dataclass(frozen=True)
class CandidateFeatures:
    """What features say of the candidate, and of models that forgot nothing."""

    gate: FeaturesGate
    n_originals_told_apart: int
    """Of the originals, each judged by a direction that the others chose: how often the same test rejects models that
    learned from the images, and so its power."""


@dataclass(frozen=True)
class Looked:
    """What was found; None with a reason why not."""

    features: CandidateFeatures | None
    exposure: Exposure | None
    features_lacking: str = ""
    others_lacking: str = ""


NO_LOOKS = "they were not looked at"
ALIKE = "the reference models do not differ in them"


def judge_candidate(looks: CandidateLooks | None, *, alpha: float) -> Looked:
    """Both questions of one candidate; α is the level of the features' test, the exposure's is its own."""
    if looks is None:
        return Looked(None, None, NO_LOOKS, NO_LOOKS)
    features, lacking = None, looks.features_lacking
    if not lacking:
        candidate, references, originals = looks.candidate, looks.references, looks.originals
        if candidate is None or references is None or originals is None:
            lacking = NO_LOOKS
        else:
            features, lacking = _features(candidate, references, originals, alpha)
    exposed, others_lacking = None, looks.others_lacking
    if not others_lacking:
        if looks.others is None or looks.others_references is None:
            others_lacking = NO_LOOKS
        else:
            exposed = exposure(looks.others, looks.others_references)
            if not exposed.n_subjects:
                exposed, others_lacking = None, ALIKE
    return Looked(features, exposed, lacking, others_lacking)


def _features(
    candidate: Array, references: Array, originals: Array, alpha: float
) -> tuple[CandidateFeatures | None, str]:
    """The verdict, or why there is none."""
    if len(references) < FEWEST_REFERENCES or len(originals) < FEWEST_ORIGINALS:
        return None, (
            f"the test needs {FEWEST_REFERENCES} reference models and {FEWEST_ORIGINALS} models trained with "
            f"everybody, and there are {len(references)} and {len(originals)}"
        )
    try:
        judged = features_gate(candidate, references, originals, alpha=alpha)
        told_apart = sum(
            not features_gate(one, references, np.delete(originals, i, axis=0), alpha=alpha).passed
            for i, one in enumerate(originals)
            if len(originals) > FEWEST_ORIGINALS
        )
    except BankError:  # as of a recipe that trains nothing
        return None, ALIKE
    return CandidateFeatures(judged, told_apart), ""
