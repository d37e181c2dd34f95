"""Bounds on ε that hold at a finite number of models.

The empirical ε is a maximum over many rules and therefore biased upwards; it is an estimate, not evidence. Evidence is
a *lower bound*: the rule is chosen on one half of the models and its errors are counted on the other half, where they
are binomial. Clopper–Pearson upper limits of FPR and FNR at α/2 each, put into eq. 1, give a bound at level 1 − α
(arXiv 2006.07709, section 4).

There is no *upper* bound on ε at δ = 1e-5 at any feasible N, because events rarer than about ln(N/α)/N cannot be ruled
out. `threshold_band` gives the δ for which (ε, δ)-unlearning can hold over all threshold rules, for all ε at once.
`limits` gives the most that any of these figures can show at a given N.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audit.errors import BankError, OptionError, in_range
from audit.statistics.epsilon import DELTA, SATURATION, intervals, merged
from audit.statistics.intervals import clopper_pearson
from audit.statistics.margins import Array, as_banks

METHOD = "clopper_pearson"
"""Name of the interval in reports."""
ALPHA = 0.05


@dataclass(frozen=True)
class LowerBounds:
    """Lower bounds on ε by example, each valid alone at level 1 − alpha."""

    bounds: Array
    """`(n_examples,)`, ≥ 0; 0 means no evidence of any difference."""
    simultaneous: float
    """A bound on the largest ε of the forget set: the largest per-example bound at level 1 − alpha/n_examples."""
    largest_possible: float
    """What perfect separation would give at this N: no figure of `bounds` can exceed it."""
    method: str
    alpha: float
    n_models_choosing: int
    n_models_counting: int


@dataclass(frozen=True)
class Limits:
    """The most that banks of N models a side can show."""

    n_models: int
    alpha: float
    largest_epsilon: float
    """Largest finite ε̂: ln(N − 1)."""
    largest_bound: float
    """Largest Clopper–Pearson lower bound with a rule fixed beforehand."""
    largest_split_bound: float
    """The same when half of the models choose the rule."""
    smallest_delta: float
    """δ below which `threshold_band` can rule nothing in, at any ε: 1 − (α/4N)^(1/N)."""
    smallest_p: float
    """Smallest p-value of the deployed model's exchangeability: 1/(N + 1)."""


@dataclass(frozen=True)
class Band:
    """δ for which (ε, δ) holds over all threshold rules, between `low` and `high` for all ε at once."""

    epsilons: Array
    """`(n_epsilons,)`"""
    low: Array
    """`(n_epsilons, n_examples)`: smaller δ are ruled out."""
    high: Array
    """`(n_epsilons, n_examples)`: this δ suffices, for threshold rules."""
    alpha: float


def lower_bounds(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    *,
    seed: int | np.random.SeedSequence,
    alpha: float = ALPHA,
    delta: float = DELTA,
) -> LowerBounds:
    """Lower bound on every example's ε: rule chosen on half of the models, counted on the other half.

    The rule is the interval of margins, with either bank inside, whose own bound on the choosing half is largest.

    Args:
        unlearned: margins `(n_models, n_examples)`.
        retrained: margins `(n_models, n_examples)`.
        seed: of the split into halves.
        alpha: error probability of each example's bound.
        delta: δ of (ε, δ)-unlearning.

    Raises:
        BankError: fewer than four models in a bank.
    """
    u, r = as_banks(unlearned, retrained)
    if min(len(u), len(r)) < 4:
        raise BankError(f"Expected at least 4 models in each bank, got {len(u)} unlearned and {len(r)} retrained.")
    u, r = np.clip(u, -SATURATION, SATURATION), np.clip(r, -SATURATION, SATURATION)
    rng = np.random.default_rng(seed)
    u, r = u[rng.permutation(len(u))], r[rng.permutation(len(r))]
    half_u, half_r = len(u) // 2, len(r) // 2
    low, high, unlearned_inside = _choose(u[:half_u], r[:half_r], delta=delta)
    u, r = u[half_u:], r[half_r:]
    in_u, in_r = (((low <= bank) & (bank <= high)).sum(axis=0) for bank in (u, r))
    misses = np.where(unlearned_inside, len(u) - in_u, len(r) - in_r)  # of the bank meant to be inside
    alarms = np.where(unlearned_inside, in_r, in_u)
    n_inside, n_outside = np.where(unlearned_inside, len(u), len(r)), np.where(unlearned_inside, len(r), len(u))

    def bounds_at(level: float) -> Array:
        return np.array(
            [
                epsilon_bound(int(m), int(p), int(a), int(b), alpha=level, delta=delta)
                for m, a, p, b in zip(misses, n_inside, alarms, n_outside, strict=True)
            ]
        )

    return LowerBounds(
        bounds=bounds_at(alpha),
        simultaneous=float(bounds_at(alpha / u.shape[1]).max()),
        largest_possible=epsilon_bound(0, 0, len(u), len(r), alpha=alpha, delta=delta),
        method=METHOD,
        alpha=alpha,
        n_models_choosing=min(half_u, half_r),
        n_models_counting=min(len(u), len(r)),
    )


@lru_cache(maxsize=65_536)
def epsilon_bound(
    false_negatives: int,
    false_positives: int,
    n_positive: int,
    n_negative: int,
    *,
    alpha: float = ALPHA,
    delta: float = DELTA,
) -> float:
    """Lower bound on ε at level 1 − alpha from the errors of one rule fixed beforehand.

    Returns:
        A number ≥ 0.

    Raises:
        OptionError: a count or alpha out of range.
    """
    in_range("false_negatives", false_negatives, 0, n_positive)
    in_range("false_positives", false_positives, 0, n_negative)
    in_range("alpha", alpha, 1e-12, 0.5)
    fnr = float(clopper_pearson(false_negatives, n_positive, alpha=alpha)[1])
    fpr = float(clopper_pearson(false_positives, n_negative, alpha=alpha)[1])
    # eq. 1 with upper limits in the place of the rates, clipped at 0
    values = [math.log((1 - delta - a) / b) for a, b in ((fpr, fnr), (fnr, fpr)) if a < 1 - delta and b > 0]
    return max([0.0, *values])


def limits(n_models: int, *, alpha: float = ALPHA, delta: float = DELTA) -> Limits:
    """Largest certifiable values of banks of `n_models` a side."""
    in_range("n_models", n_models, 2, 10_000_000)
    half = n_models - n_models // 2
    return Limits(
        n_models=n_models,
        alpha=alpha,
        largest_epsilon=math.log(n_models - 1),
        largest_bound=epsilon_bound(0, 0, n_models, n_models, alpha=alpha, delta=delta),
        largest_split_bound=epsilon_bound(0, 0, half, half, alpha=alpha, delta=delta),
        smallest_delta=1 - (alpha / 4 / n_models) ** (1 / n_models),
        smallest_p=1 / (n_models + 1),
    )


def threshold_band(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    *,
    epsilons: ArrayLike = (0.0, 0.5, 1.0, 2.0, 4.0),
    alpha: float = ALPHA,
) -> Band:
    """Simultaneous band for δ(ε) = sup over threshold rules A of P(A) − e^ε Q(A), both ways round, for all ε at once.

    With probability 1 − alpha both distribution functions lie in their bands everywhere. The bands are exact binomial
    limits at every order statistic, with alpha shared by 2 banks × 2 sides × N places (Bonferroni).

    Args:
        unlearned: margins `(n_models, n_examples)`.
        retrained: margins `(n_models, n_examples)`.
        epsilons: `(n_epsilons,)`, each ≥ 0.
        alpha: error probability of each example's band.
    """
    u, r = as_banks(unlearned, retrained)
    grid = np.asarray(epsilons, dtype=np.float64)
    if grid.ndim != 1 or not grid.size or not (grid >= 0).all():
        raise OptionError(f"Expected epsilons of shape (n >= 1,), each >= 0, got {grid.tolist()}.")
    bounds_u, bounds_r = (_cdf_limits(n, alpha / 2) for n in (len(u), len(r)))  # (2, N + 1) each
    low, high = np.zeros((len(grid), u.shape[1])), np.zeros((len(grid), u.shape[1]))
    factor = np.exp(grid)[:, None]
    for i in range(u.shape[1]):
        places = np.unique(np.concatenate([u[:, i], r[:, i]]))
        at_u, at_r = (
            bounds[:, np.append(0, np.searchsorted(np.sort(bank[:, i]), places, side="right"))]
            for bank, bounds in ((u, bounds_u), (r, bounds_r))
        )
        for p, q in ((at_u, at_r), (at_r, at_u)):
            for (p_low, p_high), (q_low, q_high) in ((p, q), (1 - p[::-1], 1 - q[::-1])):  # f ≤ t, then f > t
                low[:, i] = np.maximum(low[:, i], (p_low - factor * q_high).max(axis=1))
                high[:, i] = np.maximum(high[:, i], (p_high - factor * q_low).max(axis=1))
    return Band(grid, low, high, alpha)


def _cdf_limits(n_models: int, alpha: float) -> Array:
    """Limits `(2, N + 1)` of F where k of N margins lie below, for all k at once at level 1 − alpha."""
    return np.stack(clopper_pearson(np.arange(n_models + 1), n_models, alpha=alpha / n_models))


def _choose(u: Array, r: Array, *, delta: float) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Interval [low, high] of every example and whether the unlearned bank is meant to be inside, best on these models.

    Best is the largest Clopper–Pearson bound, among equals the largest difference of the shares inside. Ends lie midway
    between neighbouring margins, or at ±∞.
    """
    if_u, if_r = _bound_table(len(u), len(r), delta)[::-1, :], _bound_table(len(r), len(u), delta)[::-1, :].T
    share_u, share_r = np.arange(len(u) + 1)[:, None] / len(u), np.arange(len(r) + 1)[None, :] / len(r)
    gain = np.maximum(if_u, if_r) + 1e-6 * np.abs(share_u - share_r)  # [unlearned inside, retrained inside]
    u_inside = np.where(if_u == if_r, share_u >= share_r, if_u > if_r)
    low, high, which = np.empty(u.shape[1]), np.empty(u.shape[1]), np.empty(u.shape[1], dtype=bool)
    for i, (pooled, count_u) in enumerate(zip(*merged(u, r), strict=True)):
        cut, key, first, last = intervals(pooled, count_u, n_columns=len(r) + 1)
        best = int(gain.ravel().take(key[last] - key[first]).argmax())
        which[i] = u_inside.ravel()[key[last[best]] - key[first[best]]]
        edges = np.concatenate([[-np.inf], (pooled[:-1] + pooled[1:]) / 2, [np.inf]])
        low[i], high[i] = edges[cut[first[best]]], edges[cut[last[best]]]
    return low, high, which


@lru_cache(maxsize=16)
def _bound_table(n_positive: int, n_negative: int, delta: float) -> Array:
    """Clopper–Pearson bound at the default level for all errors, indexed `[false negatives, false positives]`."""
    fnr = clopper_pearson(np.arange(n_positive + 1), n_positive, alpha=ALPHA)[1][:, None]
    fpr = clopper_pearson(np.arange(n_negative + 1), n_negative, alpha=ALPHA)[1][None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = np.log((1 - delta - fpr) / fnr), np.log((1 - delta - fnr) / fpr)
    table = np.maximum(np.nan_to_num(np.fmax(first, second), nan=0.0), 0.0)
    table.flags.writeable = False
    return table
