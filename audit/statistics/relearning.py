"""Relearning: how fast a subject comes back when a model is trained on a little of them, beside retrained models.

A model that merely hides what it learned answers like a retrained one and comes back faster than one as soon as it is
trained on some of the subject's images. Of each model there are, for every image, its margin as the model stands and
after each of k steps on the half of the images it is not in, and the same for the half it is in. The area under the
first curve, the mean margin over the k steps, is taken of each image, and the gate's predictive t (`audit.gate`, upper
side) asks of each run whether it has the areas of a retrained model. The second curve is reported beside it: any model
learns an image that it is trained on.

That a run is told apart here although it is not by its margins as it stands is the sign of something hidden. The other
way round, areas are high too where the margins were from the start.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from audit.errors import BankError
from audit.statistics.distances import detect
from audit.statistics.gate import ALPHA, gate
from audit.statistics.intervals import CONFIDENCE, Interval, clopper_pearson
from audit.statistics.margins import Array
from audit.statistics.runs import UNKNOWN, vary
from audit.statistics.spread import finite, tail_mean

OTHERS, OWN = 0, 1
"""Which half was learned again: the one that an image is not in, or its own."""


@dataclass(frozen=True)
class Curve:
    """How one kind of models comes back, mean over models and images, as they stand and after each step."""

    margin: tuple[float, ...]
    answered: tuple[float, ...]
    """Share of the images whose class has a probability above one half."""
    margin_own: tuple[float, ...]
    """With the half learned again that an image is in; likewise `answered_own`."""
    answered_own: tuple[float, ...]


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


def areas(curves: ArrayLike) -> Array:
    """Area under each image's curve with the other half learned again: its mean margin over the steps.

    Args:
        curves: `(n_models, 2, n_steps + 1, n_images)`; the first axis after the models is `OTHERS`, `OWN`, the next one
            begins with the model as it stands.

    Returns:
        `(n_models, 1, n_images)`, as the gate takes margins of one view.
    """
    return _curves("curves", curves)[:, OTHERS, 1:].mean(axis=1, keepdims=True)


def p_value(model: ArrayLike, references: ArrayLike) -> float:
    """Probability of areas this large or larger under a retrained model, by the gate's predictive t.

    Args:
        model: its areas `(1, n_images)`.
        references: of retrained models, `(n_models, 1, n_images)`.
    """
    return gate(model, references).p_value


def relearning(
    runs: ArrayLike, references: ArrayLike, originals: ArrayLike | None, seed: int | np.random.SeedSequence
) -> Relearning:
    """Compare how runs of a method and retrained models come back.

    Args:
        runs, references, originals: curves, see `areas`.
        seed: of the permutations.

    Raises:
        BankError: shapes that do not fit together, or a margin that is not finite.
    """
    mine, theirs = _curves("runs", runs), _curves("references", references)
    known = None if originals is None else _curves("originals", originals)
    for name, bank in (("runs", mine), ("originals", known)):
        if bank is not None and bank.shape[1:] != theirs.shape[1:]:
            raise BankError(f"Expected {name} with the steps and images of the references, got {bank.shape}.")
    of_runs, of_references = areas(mine), areas(theirs)
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
        n_steps=mine.shape[2] - 1,
        references=_curve(theirs),
        runs=_curve(mine),
        originals=None if known is None else _curve(known),
    )


def _curve(bank: Array) -> Curve:
    margins, answered = bank.mean(axis=(0, 3)), (bank > 0).mean(axis=(0, 3))  # (2, n_steps + 1)
    return Curve(*(tuple(map(float, line)) for side in (OTHERS, OWN) for line in (margins[side], answered[side])))


def _curves(name: str, values: ArrayLike) -> Array:
    array = finite(name, values)
    if array.ndim != 4 or array.shape[1] != 2 or array.shape[2] < 2 or 0 in array.shape:
        raise BankError(f"Expected {name} of shape (n_models, 2, n_steps + 1, n_images), got {array.shape}.")
    return array
