"""Features: does the inside of a model still know the forget set, whatever its answers say?

A method can push margins where retrained models have them and leave in the layer before what it learned of a subject.
So the gate's question is asked of penultimate features, in three steps.

**Descriptors.** Two models trained from different seeds have features in different bases, permuted, mixed and scaled,
so no coordinate can be compared between models. Of each image of the forget set, and each view of it, six numbers are
taken that no rotation and no common scale of a model's features changes. They set the image beside a fixed sample of
retained images under the *same* model. With f the image's features, μ_y the mean over retained images of its own class
(the class that the model is trained to answer, not the subject) and μ_o the mean of the other class nearest by cosine:

| descriptor | is |
|---|---|
| size | log (‖f‖ / mean norm of retained images) |
| own | cos(f, μ_y) |
| other | cos(f, μ_o) |
| place | ⟨f − (μ_y + μ_o)/2, μ_y − μ_o⟩ / ‖μ_y − μ_o‖²: ½ at the own class's mean, −½ at the other's |
| cohesion | mean cos(f, f′) over the subject's other images f′ in that view, less the same over retained images |
| crowd | share of the retained images of the own class that lie farther from μ_y than f |

Of each image the median over views is kept, and of a model x, the mean over images: six numbers.

**A direction**, chosen on models alone that judge nothing: half of the references (OUT) and models trained with
everybody (IN). Fisher's linear discriminant with the pooled correlation shrunk towards none (Friedman 1989; Guo,
Hastie & Tibshirani 2007, section 2):

    w = D⁻¹ ((1 − λ) R + λ I)⁻¹ D⁻¹ (x̄_IN − x̄_OUT),    λ = SHRINKAGE,

D the pooled standard deviations and R the correlations. IN lies on the upper side.

**The gate's predictive t** of w·x against the other half of the references (`audit.statistics.gate`). Neither the
judged model nor those that judge it had a part in w, so that a retrained model is rejected with probability α. Two
sides share it: features still like those of models that learned from the subject (`UPPER_SHARE`), and features pushed
beyond those that did not.

What it cannot see: anything that these six averages or the one direction do not show, a single image among many
included; a difference where little was learned (IN near OUT); layers before the last. Passing is no proof.

How descriptors, shrinkage and halves were chosen: on the AT&T subjects that methods are tuned on and on drawn faces,
never on those whom `docs/blind-spots.md` reports.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from audit.errors import BankError, OptionError
from audit.statistics.distances import detect
from audit.statistics.gate import ALPHA, Law, law_of, upper_tail
from audit.statistics.intervals import CONFIDENCE, Interval, clopper_pearson
from audit.statistics.margins import Array
from audit.statistics.spread import finite

DESCRIPTORS = ("size", "own", "other", "place", "cohesion", "crowd")
VERSION = 1
"""Changes with every change of the descriptors: whoever keeps some keeps it in their key."""
SHRINKAGE = 0.2
UPPER_SHARE, LOWER_SHARE = 0.8, 0.2
"""Of α, for features too like IN, and features pushed beyond OUT."""
FEWEST_REFERENCES, FEWEST_ORIGINALS = 4, 2
_TINY = 1e-12


def descriptors(
    features: ArrayLike, labels: ArrayLike, subjects: ArrayLike, retained: ArrayLike, retained_labels: ArrayLike
) -> Array:
    """What can be compared between models of the penultimate features of the forget set's images.

    Args:
        features: of the forget set under one model, `(n_views, n_images, n_features)`, any float type.
        labels: class of each image, int `(n_images,)`.
        subjects: whose each image is, `(n_images,)`; any values that can be compared.
        retained: features of retained images as they are, under the same model, `(n_retained >= 2, n_features)`. The
            same images for all models that are compared.
        retained_labels: int `(n_retained,)`, of two classes at least, each class of the forget set among them.

    Returns:
        float64 `(n_descriptors, n_images)`, in the order of `DESCRIPTORS`, of each image the median over views.
        Unchanged, up to rounding, by an orthogonal matrix or a factor above 0 applied to all features.

    Raises:
        BankError: shapes that do not fit together, a value that is not finite, or no retained image of some class.
    """
    f, kept = finite("features", features, what="features"), finite("retained", retained, what="features")
    y, whose, kept_y = np.asarray(labels), np.asarray(subjects), np.asarray(retained_labels)
    if f.ndim != 3 or 0 in f.shape or kept.ndim != 2 or len(kept) < 2 or kept.shape[1] != f.shape[2]:
        raise BankError(
            "Expected features (n_views, n_images, n_features) and retained (n_retained >= 2, n_features) of as many "
            f"features, got {f.shape} and {kept.shape}."
        )
    if not (y.shape == whose.shape == f.shape[1:2] and kept_y.shape == kept.shape[:1]):
        raise BankError(
            f"Expected labels and subjects of {f.shape[1]} images and labels of {len(kept)} retained ones, got "
            f"{y.shape}, {whose.shape} and {kept_y.shape}."
        )
    classes = np.unique(kept_y)
    if len(classes) < 2 or not np.isin(y, classes).all():
        raise BankError(
            f"Expected retained images of two classes and of every class of the forget set, got {len(classes)} "
            "classes; take another sample of retained images."
        )
    size = max(float(np.linalg.norm(kept, axis=1).mean()), _TINY)
    f, kept = f / size, kept / size
    means = np.array([kept[kept_y == one].mean(axis=0) for one in classes])  # (n_classes, n_features)
    mine = np.searchsorted(classes, y)  # (n_images,)
    cosines = _unit(f) @ _unit(means).T  # (n_views, n_images, n_classes)
    images = np.arange(len(y))
    own = cosines[:, images, mine]
    others = cosines.copy()
    others[:, images, mine] = -np.inf
    mean, other_mean = means[mine], means[others.argmax(axis=2)]
    apart = mean - other_mean  # (n_views, n_images, n_features)
    place = ((f - (mean + other_mean) / 2) * apart).sum(axis=2) / np.maximum((apart**2).sum(axis=2), _TINY)
    distance = np.linalg.norm(f - mean, axis=2)
    crowd = np.empty_like(distance)
    for i, one in enumerate(classes):
        of_class = mine == i
        theirs = np.sort(np.linalg.norm(kept[kept_y == one] - means[i], axis=1))
        crowd[:, of_class] = 1 - np.searchsorted(theirs, distance[:, of_class], side="right") / len(theirs)
    found = np.stack(
        [
            np.log(np.maximum(np.linalg.norm(f, axis=2), _TINY)),
            own,
            others.max(axis=2),
            place,
            _cohesion(f, whose, kept),
            crowd,
        ]
    )
    return np.asarray(np.median(found, axis=1))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _TINY))


def _cohesion(features: Array, subjects: Array, retained: Array) -> Array:
    """Mean cosine to the subject's other images `(n_views, n_images)`, 0 where there is none, less that of others."""
    units = _unit(features)
    same = (subjects[:, None] == subjects[None, :]) & ~np.eye(len(subjects), dtype=bool)
    n_same = same.sum(axis=1)
    among = (units @ units.transpose(0, 2, 1) * same).sum(axis=2) / np.maximum(n_same, 1)
    n, total = len(retained), _unit(retained).sum(axis=0)
    usual = float((total @ total - n) / (n * (n - 1)))  # over ordered pairs of different retained images
    return np.where(n_same > 0, among - usual, 0.0)


def direction(references: ArrayLike, originals: ArrayLike) -> Array:
    """w of the module's text, `(n_descriptors,)`: along it originals lie above references.

    Args:
        references: models' means over images `(n_models >= 2, n_descriptors)`, of models that will judge nothing.
        originals: the same of models trained with everybody, at least two.
    """
    out, known = np.asarray(references, dtype=np.float64), np.asarray(originals, dtype=np.float64)
    residues = np.concatenate([out - out.mean(axis=0), known - known.mean(axis=0)])
    covariance = residues.T @ residues / (len(residues) - 2)
    spread = np.sqrt(np.diag(covariance))
    varies = spread > _TINY
    w = np.zeros(len(spread))
    if varies.any():
        d = spread[varies]
        shrunk = (1 - SHRINKAGE) * covariance[np.ix_(varies, varies)] / np.outer(d, d) + SHRINKAGE * np.eye(len(d))
        w[varies] = np.linalg.solve(shrunk, (known.mean(axis=0) - out.mean(axis=0))[varies] / d) / d
    return w


@dataclass(frozen=True)
class FeaturesGate:
    """The verdict on the features of one candidate."""

    passed: bool
    """Neither side's p-value is below its share of α: `p_adjusted` is at least α."""
    alpha: float
    t: float
    """How far the candidate lies towards IN, as a predictive t of the judging references."""
    p_value: float
    """Probability of features this far towards IN, or further, under a model trained without the forget set."""
    p_over: float
    """The same of the other side."""
    p_adjusted: float
    """The smaller of the two, each divided by its share of α."""
    degrees_of_freedom: float
    weights: tuple[float, ...]
    """w, in the order of `DESCRIPTORS`."""
    n_judging: int
    """References that judge; `n_choosing` chose the direction, with `n_originals`."""
    n_choosing: int
    n_originals: int


def features_gate(
    candidate: ArrayLike, references: ArrayLike, originals: ArrayLike, *, alpha: float = ALPHA
) -> FeaturesGate:
    """Judge one candidate by its features: could it be a model that was trained without the forget set?

    The first half of the references chooses the direction, with the originals, and the second half judges.

    Args:
        candidate: descriptors `(n_descriptors, n_images)` of the forget set, from `descriptors`.
        references: the same of models trained without the forget set, `(n_models >= 4, n_descriptors, n_images)`.
        originals: the same of models trained with everybody, at least 2, among them not the one that the candidate was
            made from: it would lie near its own luck.
        alpha: false positive rate, both sides together, in (0, 1).

    Raises:
        BankError: shapes that do not fit together, too few models, a descriptor that is not finite, or references that
            all lie on one point of the direction.
        OptionError: alpha outside (0, 1).
    """
    mine = finite("candidate", candidate, what="descriptors")
    scale = _scale(references, originals)
    if mine.shape != scale.shape:
        raise BankError(f"Expected candidate of shape {scale.shape} as the references have it, got {mine.shape}.")
    return _judged(mine, scale, alpha)


@dataclass(frozen=True)
class FeaturesOfRuns:
    """What the features of a method's runs on one subject say."""

    share: Interval
    """Share of the runs that are told apart from retrained models at α, with its exact binomial interval."""
    n_told_apart: int
    n_too_like_in: int
    """Told apart on the upper side."""
    detection_p: float
    """p-value of all runs together against the judging references along the direction (KS, permuting models)."""
    shift: float
    """How far the runs' mean lies above the judging references', in their standard deviations."""
    nothing_done: float | None
    """The same of the original that the runs began from, so of having done nothing; near 0 the test sees nothing of
    this subject. None: unknown."""
    n_runs: int
    n_judging: int
    n_choosing: int
    n_originals: int
    alpha: float = ALPHA


def features_of_runs(  # noqa: PLR0917
    runs: ArrayLike,
    references: ArrayLike,
    originals: ArrayLike,
    seed: int | np.random.SeedSequence,
    nothing_done: ArrayLike | None = None,
    alpha: float = ALPHA,
) -> FeaturesOfRuns:
    """`features_gate` of each run `(n_runs, n_descriptors, n_images)`, all by one direction and one half.

    Args:
        nothing_done: descriptors of the original that the runs began from, `(n_descriptors, n_images)`.
    """
    scale = _scale(references, originals)
    mine = finite("runs", runs, what="descriptors")
    if mine.ndim != 3 or not len(mine) or mine.shape[1:] != scale.shape:
        raise BankError(f"Expected runs of shape (n_runs >= 1, {scale.shape[0]}, {scale.shape[1]}), got {mine.shape}.")
    judged = [_judged(run, scale, alpha) for run in mine]
    n, k = len(judged), sum(not one.passed for one in judged)
    low, high = clopper_pearson(k, n, alpha=1 - CONFIDENCE)
    of_runs = mine.mean(axis=2) @ scale.weights
    law = scale.law
    return FeaturesOfRuns(
        share=Interval(k / n, float(low), float(high)),
        n_told_apart=k,
        n_too_like_in=sum(one.p_value < alpha * UPPER_SHARE for one in judged),
        detection_p=detect(of_runs[:, None], scale.scores[:, None], seed=seed).ks_combined_p,
        shift=float((of_runs.mean() - law.mean) / law.spread),
        nothing_done=None if nothing_done is None else (scale.score(nothing_done) - law.mean) / law.spread,
        n_runs=n,
        n_judging=len(scale.scores),
        n_choosing=scale.n_choosing,
        n_originals=scale.n_originals,
        alpha=alpha,
    )


@dataclass(frozen=True)
class _Scale:
    """The direction, and where the judging references lie on it."""

    weights: Array
    scores: Array
    law: Law
    shape: tuple[int, int]
    n_choosing: int
    n_originals: int

    def score(self, descriptors: ArrayLike) -> float:
        return float(np.asarray(descriptors, dtype=np.float64).mean(axis=1) @ self.weights)


def _scale(references: ArrayLike, originals: ArrayLike) -> _Scale:
    out, known = (
        finite(name, bank, what="descriptors") for name, bank in (("references", references), ("originals", originals))
    )
    for name, bank, fewest in (("references", out, FEWEST_REFERENCES), ("originals", known, FEWEST_ORIGINALS)):
        if bank.ndim != 3 or len(bank) < fewest or 0 in bank.shape[1:] or bank.shape[1:] != out.shape[1:]:
            raise BankError(
                f"Expected {name} of shape (n_models >= {fewest}, n_descriptors, n_images) as the others, got "
                f"{bank.shape}."
            )
    half = len(out) // 2
    means = out.mean(axis=2)  # (n_models, n_descriptors)
    weights = direction(means[:half], known.mean(axis=2))
    scores = means[half:] @ weights
    return _Scale(weights, scores, law_of("references", scores), out.shape[1:], half, len(known))


def _judged(candidate: Array, scale: _Scale, alpha: float) -> FeaturesGate:
    if not 0 < alpha < 1:
        raise OptionError(f"Expected alpha in (0, 1), got {alpha}; 0.05 is usual.")
    law = scale.law
    t = law.t(scale.score(candidate))
    p_value, p_over = upper_tail(t, law.degrees), upper_tail(-t, law.degrees)
    p_adjusted = min(1.0, p_value / UPPER_SHARE, p_over / LOWER_SHARE)
    return FeaturesGate(
        passed=p_adjusted >= alpha,
        alpha=alpha,
        t=t,
        p_value=p_value,
        p_over=p_over,
        p_adjusted=p_adjusted,
        degrees_of_freedom=law.degrees,
        weights=tuple(float(weight) for weight in scale.weights),
        n_judging=len(scale.scores),
        n_choosing=scale.n_choosing,
        n_originals=scale.n_originals,
    )
