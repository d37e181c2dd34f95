"""Utility: what the model is still good for, against what retrained models are good for, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from audit.errors import BankError, OptionError
from audit.statistics.intervals import (
    CONFIDENCE,
    Interval,
    as_accuracies,
    clopper_pearson,
    percentiles,
    resampled_means,
)
from audit.statistics.margins import Array, as_bank


@dataclass(frozen=True)
class Deployed:
    """One model's accuracy beside a bank's."""

    accuracy: float
    ratio: Interval
    """Accuracy over the bank's mean. The interval is the bank's spread: where 95 % of references lie."""
    p_value: float
    """Share of bank and model at or below the model's accuracy: small if it is worse than references ever are."""


@dataclass(frozen=True)
class Utility:
    """Accuracies on one set (retain, test or forget); `unlearned` and `ratio` are None without an unlearned bank."""

    retrained: Interval
    unlearned: Interval | None
    ratio: Interval | None
    """Mean of the unlearned bank over mean of the retrained one, not capped; bootstrap over models."""
    deployed: Deployed
    original: Deployed


def utility(
    retrained: ArrayLike,
    unlearned: ArrayLike | None,
    deployed: float,
    original: float,
    *,
    seed: int | np.random.SeedSequence,
    n_draws: int = 2000,
    confidence: float = CONFIDENCE,
) -> Utility:
    """Accuracies `(n_models,)` of both banks, of the deployed and of the original model, compared.

    Raises:
        BankError: an accuracy outside [0, 1] or NaN.
    """
    if n_draws < 2:
        raise OptionError(f"Expected n_draws >= 2, got {n_draws}.")
    bank = as_accuracies("retrained accuracies", retrained)
    rng = np.random.default_rng(seed)
    bank_means = resampled_means(bank, draws=n_draws, rng=rng)
    mine, ratio = None, None
    if unlearned is not None:
        values = as_accuracies("unlearned accuracies", unlearned)
        means = resampled_means(values, draws=n_draws, rng=rng)
        mine = percentiles(float(values.mean()), means, confidence=confidence)
        quotient = float(_over(values.mean(), bank.mean()))
        ratio = percentiles(quotient, _over(means, bank_means), confidence=confidence)
    return Utility(
        retrained=percentiles(float(bank.mean()), bank_means, confidence=confidence),
        unlearned=mine,
        ratio=ratio,
        deployed=one_model(deployed, bank, confidence=confidence),
        original=one_model(original, bank, confidence=confidence),
    )


def one_model(accuracy: float, retrained: ArrayLike, *, confidence: float = CONFIDENCE) -> Deployed:
    """One model's accuracy against a bank's `(n_models,)`."""
    bank = as_accuracies("retrained accuracies", retrained)
    value = float(as_accuracies("accuracy", [accuracy])[0])
    spread = percentiles(float(_over(value, bank.mean())), _over(bank, bank.mean()), confidence=confidence)
    return Deployed(value, spread, float((1 + (bank <= value).sum()) / (len(bank) + 1)))


def forget_accuracy(margins: ArrayLike) -> Array:
    """Share of forget examples each model still gets right, `(n_models,)` of a bank `(n_models, n_examples)`.

    A positive margin means more than half of the probability on the true class; with two classes that is the
    accuracy, with more it is a lower bound of it.
    """
    return (as_bank("margins", margins, min_models=1) > 0).mean(axis=1)


def accuracy(n_correct: int, n_examples: int, *, confidence: float = CONFIDENCE) -> Interval:
    """Accuracy of one model on `n_examples` independent examples with its Clopper–Pearson interval."""
    low, high = clopper_pearson(n_correct, n_examples, alpha=1 - confidence)
    return Interval(n_correct / n_examples, float(low), float(high), confidence)


def expected_calibration_error(logits: ArrayLike, labels: ArrayLike, *, n_bins: int = 15) -> float:
    """ECE: mean gap between confidence and accuracy over equal-width bins of confidence (Guo et al. 2017, eq. 3).

    Args:
        logits: `(n_examples, n_classes)`.
        labels: int `(n_examples,)`.
        n_bins: bins of [0, 1].
    """
    z, y = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if z.ndim != 2 or not z.shape[0] or y.shape != z.shape[:1]:
        raise BankError(f"Expected logits (n, n_classes) with n labels, n >= 1, got {z.shape} and {y.shape}.")
    if n_bins < 1:
        raise OptionError(f"Expected n_bins >= 1, got {n_bins}.")
    confidence = special.softmax(z, axis=1).max(axis=1)
    correct = z.argmax(axis=1) == y
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = np.bincount(bins, weights=correct - confidence, minlength=n_bins)
    return float(np.abs(gaps).sum() / len(y))


def _over(top: ArrayLike, bottom: ArrayLike) -> Array:
    """Ratio, NaN where the bank never gets anything right."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.true_divide(top, bottom)
    return np.where(np.isfinite(quotient), quotient, np.nan)
