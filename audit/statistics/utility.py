"""Utility: accuracies of unlearned models compared with those of retrained models, with intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from audit.errors import OptionError
from audit.statistics.intervals import (
    CONFIDENCE,
    Interval,
    as_accuracies,
    percentiles,
    resampled_means,
)
from audit.statistics.margins import Array, as_bank


@dataclass(frozen=True)
class Deployed:
    """One model's accuracy compared with a bank's."""

    accuracy: float
    ratio: Interval
    """Accuracy over the bank's mean. The interval is the bank's spread: where 95 % of references lie."""
    p_value: float
    """Share of bank and model with an accuracy of at most the model's; small if the model is unusually bad."""


@dataclass(frozen=True)
class Utility:
    """Accuracies on one set (retain, test or forget); `unlearned` and `ratio` are None without an unlearned bank."""

    retrained: Interval
    unlearned: Interval | None
    ratio: Interval | None
    """Mean of the unlearned bank over mean of the retrained bank, not capped; bootstrap over models."""
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
    """Compare accuracies `(n_models,)` of two banks, and those of the deployed and the original model.

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
    """Compare one model's accuracy with those of a bank `(n_models,)`."""
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


def _over(top: ArrayLike, bottom: ArrayLike) -> Array:
    """Ratio, NaN where the bank's accuracy is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        quotient = np.true_divide(top, bottom)
    return np.where(np.isfinite(quotient), quotient, np.nan)
