"""Figures with confidence intervals, and functions that compute them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from audit.errors import BankError, OptionError, in_range
from audit.statistics.margins import Array

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """`value` with a two-sided confidence interval [low, high] at level `confidence`; NaN where undetermined."""

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high


def percentiles(value: float, replicates: ArrayLike, *, confidence: float = CONFIDENCE) -> Interval:
    """Percentile interval of bootstrap replicates around a point value (Efron 1979); NaN replicates are left out."""
    in_range("confidence", confidence, 0.5, 0.9999)
    known = np.asarray(replicates, dtype=np.float64)
    known = known[~np.isnan(known)]
    if not known.size:
        return Interval(float(value), np.nan, np.nan, confidence)
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(value), float(low), float(high), confidence)


def resampled_means(values: Array, *, draws: int, rng: np.random.Generator) -> Array:
    """Means `(draws,)` of bootstrap samples of `values` `(n,)`, drawn as multinomial weights."""
    n = len(values)
    return rng.multinomial(n, np.full(n, 1 / n), size=draws) @ values / n


def clopper_pearson(n_events: ArrayLike, n_trials: int, *, alpha: float) -> tuple[Array, Array]:
    """Exact binomial limits (Clopper & Pearson 1934), each one-sided at level 1 − alpha/2.

    Args:
        n_events: counts in [0, n_trials], any shape.
        n_trials: number of trials, at least 1.
        alpha: two-sided error probability.

    Returns:
        lower and upper limits in the shape of `n_events`.
    """
    in_range("alpha", alpha, 0.0, 1.0)
    k = np.asarray(n_events)
    if n_trials < 1 or (k < 0).any() or (k > n_trials).any():
        raise OptionError(f"Expected counts in [0, {n_trials}] of at least one trial, got {k.min()} to {k.max()}.")
    low = np.where(k == 0, 0.0, stats.beta.ppf(alpha / 2, np.maximum(k, 1), n_trials - k + 1))
    high = np.where(k == n_trials, 1.0, stats.beta.ppf(1 - alpha / 2, k + 1, np.maximum(n_trials - k, 1)))
    return low, high


def as_accuracies(name: str, values: ArrayLike, n_models: int | None = None) -> Array:
    """One accuracy for each model as float64 `(n_models,)`, each in [0, 1].

    Raises:
        BankError: another shape, or a value outside [0, 1] or NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not array.size or (n_models is not None and len(array) != n_models):
        expected = "(n_models >= 1,)" if n_models is None else f"({n_models},)"
        raise BankError(f"Expected {name} of shape {expected}, one accuracy a model, got {array.shape}.")
    bad = np.flatnonzero(~((array >= 0) & (array <= 1)))
    if bad.size:
        raise BankError(f"Expected every accuracy of {name} in [0, 1], got {array[bad[0]]} for model {bad[0]}.")
    return array
