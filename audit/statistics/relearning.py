"""Relearning: how fast a subject comes back when a model is trained on a little of them, beside retrained models.

A model that merely hides what it learned answers like a retrained one and comes back faster than one as soon as it is
trained on some of the subject's images. Of each model there is, for every image, its margin as the model stands and
after each of a few steps on some of the images. The area under the curve of an image that was *not* learned again, the
mean margin over the steps, goes into the gate's predictive t (`audit.gate`, upper side): has a run the areas of a
retrained model? The images that were learned again are reported beside it: any model learns what it is trained on.

That a run is told apart here although it is not by its margins as it stands is the sign of something hidden. The other
way round, areas are high too where the margins were from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audit.errors import BankError
from audit.statistics.distances import detect
from audit.statistics.gate import ALPHA, gate
from audit.statistics.intervals import CONFIDENCE, Interval, clopper_pearson
from audit.statistics.margins import Array
from audit.statistics.runs import UNKNOWN, vary
from audit.statistics.spread import finite, tail_mean


@dataclass(frozen=True)
class Curve:
    """How one kind of models comes back, mean over models and images, as they stand and after each step."""

    margin: tuple[float, ...]
    """Of the images that were not learned again."""
    answered: tuple[float, ...]
    """Share of these images whose class has a probability above one half."""
    margin_relearned: tuple[float, ...]
    """Of the images that were learned again; likewise `answered_relearned`."""
    answered_relearned: tuple[float, ...]


@dataclass(frozen=True)
class Relearning:
    """What relearning tells of a method's runs on one probe subject. Nothing of it has a bar."""

    told_apart: Interval
    """Share of the runs with larger areas than retrained models have, at α = .05, with its exact binomial interval over
    runs; NaN where the references do not differ."""
    n_told_apart: int
    n_runs: int
    detection_p: float
    """p-value of telling the runs' areas from the references' by their mean KS distance, by permuting models."""
    shift: float
    """How far T of the runs' areas lies above that of the references', in the references' standard deviations."""
    n_steps: int
    references: Curve
    runs: Curve
    originals: Curve | None


def areas(curves: ArrayLike, relearned: ArrayLike) -> Array:
    """Area under the curve of each image that was not learned again: its mean margin over the steps.

    Args:
        curves: `(n_models, n_steps + 1, n_images)`, the model as it stands first.
        relearned: positions of the images that were learned again.

    Returns:
        `(n_models, 1, n_others)`, as the gate takes margins of one view.
    """
    array = _curves("curves", curves)
    return array[:, 1:, _others(array.shape[2], relearned)].mean(axis=1, keepdims=True)


def p_value(model: ArrayLike, references: ArrayLike) -> float:
    """Probability of areas this large or larger under a retrained model, by the gate's predictive t.

    Args:
        model: its areas `(1, n_others)`.
        references: of retrained models, `(n_models, 1, n_others)`.
    """
    return gate(model, references).p_value


def relearning(
    runs: ArrayLike,
    references: ArrayLike,
    originals: ArrayLike | None,
    relearned: ArrayLike,
    *,
    seed: int | np.random.SeedSequence,
) -> Relearning:
    """Compare how runs of a method and retrained models come back.

    Args:
        runs, references, originals, relearned: curves and which images were learned again, see `areas`.
        seed: of the permutations.

    Raises:
        BankError: shapes that do not fit together, a margin that is not finite, or no image that was not learned again.
    """
    mine, theirs = _curves("runs", runs), _curves("references", references)
    known = None if originals is None else _curves("originals", originals)
    for name, bank in (("runs", mine), ("originals", known)):
        if bank is not None and bank.shape[1:] != theirs.shape[1:]:
            raise BankError(f"Expected {name} with the steps and images of the references, got {bank.shape}.")
    of_runs, of_references = areas(mine, relearned), areas(theirs, relearned)
    n, k, share, shift = len(mine), 0, UNKNOWN, float("nan")
    if vary(of_references):
        k = sum(p_value(run, of_references) < ALPHA for run in of_runs)
        low, high = clopper_pearson(k, n, alpha=1 - CONFIDENCE)
        share = Interval(k / n, float(low), float(high))
        t = tail_mean(of_references)
        shift = float((tail_mean(of_runs).mean() - t.mean()) / t.std(ddof=1))
    return Relearning(
        told_apart=share,
        n_told_apart=k,
        n_runs=n,
        detection_p=detect(of_runs[:, 0], of_references[:, 0], seed=seed).ks_combined_p,
        shift=shift,
        n_steps=mine.shape[1] - 1,
        references=_curve(theirs, relearned),
        runs=_curve(mine, relearned),
        originals=None if known is None else _curve(known, relearned),
    )


def _curve(bank: Array, relearned: ArrayLike) -> Curve:
    others = _others(bank.shape[2], relearned)
    sides = (bank[:, :, others], bank[:, :, ~others])
    return Curve(*(tuple(map(float, line.mean(axis=(0, 2)))) for side in sides for line in (side, side > 0)))


def _others(n_images: int, relearned: ArrayLike) -> NDArray[np.bool_]:
    others = np.ones(n_images, dtype=bool)
    others[np.asarray(relearned, dtype=np.int64)] = False
    if not 0 < others.sum() < n_images:
        raise BankError(f"Expected some of the {n_images} images to be learned again and some not.")
    return others


def _curves(name: str, values: ArrayLike) -> Array:
    array = finite(name, values)
    if array.ndim != 3 or array.shape[1] < 2 or 0 in array.shape:
        raise BankError(f"Expected {name} of shape (n_models, n_steps + 1, n_images), got {array.shape}.")
    return array
