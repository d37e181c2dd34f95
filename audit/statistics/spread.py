"""The statistic T of a model, and how much it varies from model to model in other blocks.

Eight references know their spread badly, and a test pays for it. What other blocks say of it makes up for that: s² is
shrunk towards a typical variance s₀², worth ν₀ degrees of freedom (Smyth, "Linear models and empirical Bayes methods",
*Statistical Applications in Genetics and Molecular Biology* 3(1), 2004, sections 3 and 6: the moderated t).

Tested in `tests/audit/statistics/test_gate.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from audit.errors import BankError, OptionError
from audit.statistics.margins import Array

TAIL = 1 / 3
"""Share of the images, those with the lowest margins, that the statistic is the mean of."""


@dataclass(frozen=True)
class PooledSpread:
    """What other blocks say about the variance of `tail_mean` over models: a scaled inverse χ² distribution.

    Raises:
        OptionError: a variance or a number of degrees that is not above 0.
    """

    variance: float
    """Scale s₀²: the typical variance of a block, finite."""
    n_degrees: float
    """ν₀: how many degrees of freedom it is worth; the smaller, the more the blocks differ. May be infinite."""

    def __post_init__(self) -> None:
        if not 0 < self.variance < math.inf:
            raise OptionError(
                f"Expected a pooled variance above 0 and finite, got {self.variance}; see `pooled_spread`."
            )
        if not self.n_degrees > 0:
            raise OptionError(f"Expected n_degrees of the pooled spread above 0, got {self.n_degrees}.")


def tail_mean(margins: ArrayLike) -> Array:
    """T: of each image the median over its views, and of these the mean of the lowest third, at least one.

    The median lets no single view decide: neither one under which a model is lost whether it knows the subject or not,
    nor one that a method has fitted.

    Args:
        margins: `(..., n_views, n_images)`.

    Returns:
        float64 `(...)`.
    """
    medians = np.median(np.asarray(margins, dtype=np.float64), axis=-2)
    n_lowest = max(1, math.ceil(medians.shape[-1] * TAIL - 1e-9))
    return np.asarray(np.partition(medians, n_lowest - 1, axis=-1)[..., :n_lowest].mean(axis=-1))


def pooled_spread(banks: Iterable[ArrayLike]) -> PooledSpread:
    """The spread of T over models in several blocks, by the moments of the log variances (Smyth 2004, section 6.2).

    The blocks' true variances are taken to be draws from a scaled inverse χ² distribution. Its ν₀ is infinite if the
    sample variances differ no more than by chance; here it is at most the degrees of all blocks together, since no
    more is known.

    Args:
        banks: references `(n_models, n_views, n_images)` of at least three blocks, none of them the one that is to be
            judged; numbers of models, views and images may differ.

    Raises:
        BankError: fewer than three blocks, or a bank that `gate` would refuse.
    """
    statistics = [tail_mean(bank_of(f"bank {i} of the pooled ones", bank)) for i, bank in enumerate(banks)]
    if len(statistics) < 3:
        raise BankError(f"Expected references of at least 3 blocks to pool, got {len(statistics)}; judge without.")
    for i, values in enumerate(statistics):
        refuse_equal(f"bank {i} of the pooled ones", values)
    degrees = np.array([len(values) - 1 for values in statistics], dtype=np.float64)
    logs = np.log([values.var(ddof=1) for values in statistics])
    centred = logs - special.digamma(degrees / 2) + np.log(degrees / 2)  # E = log s₀² − ψ(ν₀/2) + log(ν₀/2)
    excess = float(centred.var(ddof=1) - special.polygamma(1, degrees / 2).mean())  # ψ′(ν₀/2)
    known = float(degrees.sum())
    n_degrees = known if excess <= 0 else min(2 * _trigamma_inverse(excess), known)
    log_scale = float(centred.mean()) + float(special.digamma(n_degrees / 2)) - math.log(n_degrees / 2)
    return PooledSpread(math.exp(log_scale), n_degrees)


def _trigamma_inverse(value: float) -> float:
    """x with ψ′(x) = value, by Newton's method (Smyth 2004, appendix): monotonically convergent from this start."""
    if value < 1e-6:
        return 1 / value
    x = 0.5 + 1 / value
    for _ in range(50):
        trigamma = float(special.polygamma(1, x))
        step = trigamma * (1 - trigamma / value) / float(special.polygamma(2, x))
        x += step
        if -step / x < 1e-10:
            break
    return x


def bank_of(name: str, values: ArrayLike) -> Array:
    bank = finite(name, values)
    if bank.ndim != 3 or 0 in bank.shape[1:]:
        raise BankError(
            f"Expected {name} of shape (n_models, n_views >= 1, n_images >= 1), got {bank.shape}; "
            "margins of the images as they are count as one view."
        )
    if len(bank) < 2:
        raise BankError(f"Expected at least 2 models in {name}, got {len(bank)}; their spread is part of the test.")
    return bank


def finite(name: str, values: ArrayLike, *, what: str = "margins") -> Array:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise BankError(
            f"Expected {name} as numbers, every model with the same views and images, got {error}; "
            "score the same images in the same views."
        ) from error
    bad = np.argwhere(~np.isfinite(array))
    if bad.size:
        place = ", ".join(str(index) for index in bad[0])
        raise BankError(
            f"Expected finite {what} in {name}, got {array[tuple(bad[0])]} at [{place}] ({len(bad)} such values); "
            "find the model whose training diverged and leave it out."
        )
    return array


def refuse_equal(name: str, statistics: Array) -> None:
    if are_equal(statistics):
        raise BankError(
            f"Expected models of {name} that differ, got the same statistic of all {len(statistics)}; "
            "train each with a seed of its own."
        )


def are_equal(statistics: Array) -> bool:
    """Whether they differ by no more than rounding."""
    return float(np.ptp(statistics)) <= 1e-12 * max(1.0, float(np.abs(statistics).max()))
