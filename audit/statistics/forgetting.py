"""Forgetting quality F, the competition's score, and F compared with that of a perfect unlearner.

F is the mean over the forget set of the points H(ε) of each example (metric report, section 4): buckets of ε of width
½, [0, ½) gives 1, [½, 1) gives ½, [1, 1½) gives ¼, … up to ceil(ln(N − 1)), 0 beyond.

Because ε is the largest over 160,000 rules, a *perfect* unlearner has F near 0.19, not 1, at every N. Policies
therefore set their bar on the ratio F / F_null. F_null is the same statistic between two disjoint halves of the
retrained bank, and F is computed at the same size: half of the unlearned against half of the retrained models, averaged
over random halves. For a perfect unlearner both have the same distribution, so the ratio is centred on 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from audit.errors import BankError, OptionError
from audit.statistics.epsilon import DELTA, Mode, epsilons
from audit.statistics.intervals import CONFIDENCE, Interval, as_accuracies, percentiles
from audit.statistics.margins import Array, as_banks

BUCKET_WIDTH = 0.5


@dataclass(frozen=True)
class ForgettingQuality:
    """F of one pair of banks."""

    value: float
    """F in [0, 1], the mean of `points` over the determined examples; NaN if there is none."""
    epsilons: Array
    """`(n_examples,)`, NaN where undetermined."""
    points: Array
    """H(ε) `(n_examples,)`, NaN where undetermined."""
    median_epsilon: float
    """Median ε of the determined examples."""
    n_undetermined: int
    """Number of examples for which every rule was dropped; they are left out of the mean."""
    n_models: int
    """Models a side (the smaller side)."""
    n_buckets: int
    """Buckets that give points at this N."""


@dataclass(frozen=True)
class CompetitionScore:
    """F × (mean RA_U / mean RA_R) × (mean TA_U / mean TA_R); the ratios are not capped."""

    value: float
    forgetting: ForgettingQuality
    retain_ratio: float
    test_ratio: float


@dataclass(frozen=True)
class ForgettingRatio:
    """F / F_null at equal size, from draws of halves; see `forgetting_ratio`."""

    ratio: Interval
    """Mean F over mean F_null, with a confidence interval over models; NaN if nothing was determined."""
    forgetting: Interval
    """F of m unlearned against m retrained models: mean over draws of halves, and their central 95 %."""
    null: Interval
    """F_null of m against m other retrained models: mean over draws of halves, and their central 95 %."""
    median_epsilon: Interval
    """Median ε over the forget set, unlearned against retrained, likewise."""
    null_median_epsilon: Interval
    """Median ε over the forget set, retrained against retrained, likewise."""
    null_score: Interval
    """The competition's score of retrained against retrained models, likewise."""
    n_models_a_side: int
    """Models in each half, m."""
    n_pairs: int
    forgetting_draws: Array
    """`(2 n_pairs,)`"""
    null_draws: Array
    """`(n_pairs,)`"""


def points(epsilon: ArrayLike, n_models: int) -> Array:
    """H(ε) for banks of `n_models` (metric report, section 4): 2^−⌊2ε⌋ up to ceil(ln(N − 1)), 0 beyond, NaN for NaN."""
    values = np.asarray(epsilon, dtype=np.float64)
    bucket = np.floor(values / BUCKET_WIDTH)
    return np.where(np.isnan(values), np.nan, np.where(bucket < n_buckets(n_models), 0.5**bucket, 0.0))


def n_buckets(n_models: int) -> int:
    """Buckets that give points: those that end at or below ceil(ln(N − 1))."""
    if n_models < 2:
        raise BankError(f"Expected at least 2 models a side, got {n_models}.")
    return int(np.ceil(np.log(n_models - 1)) / BUCKET_WIDTH)


def forgetting_quality(
    unlearned: ArrayLike, retrained: ArrayLike, *, mode: Mode = "official", delta: float = DELTA
) -> ForgettingQuality:
    """F of an unlearned bank `(n_models, n_examples)` against a retrained one; see the module's text.

    Raises:
        BankError: as `audit.statistics.epsilon.epsilons`.
    """
    u, r = as_banks(unlearned, retrained)
    eps = epsilons(u, r, mode=mode, delta=delta)
    n_models = min(len(u), len(r))
    gained = points(eps, n_models)
    known = ~np.isnan(eps)
    return ForgettingQuality(
        value=float(gained[known].mean()) if known.any() else np.nan,
        epsilons=eps,
        points=gained,
        median_epsilon=float(np.median(eps[known])) if known.any() else np.nan,
        n_undetermined=int((~known).sum()),
        n_models=n_models,
        n_buckets=n_buckets(n_models),
    )


def competition_score(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    *,
    retain_accuracy_unlearned: ArrayLike,
    retain_accuracy_retrained: ArrayLike,
    test_accuracy_unlearned: ArrayLike,
    test_accuracy_retrained: ArrayLike,
    mode: Mode = "official",
) -> CompetitionScore:
    """The competition's score of an unlearned bank (metric report, section 5).

    Args:
        unlearned: margins `(n_models, n_examples)` on the forget set.
        retrained: the same of retrained models.
        retain_accuracy_unlearned: accuracy of each model on the retain set, in [0, 1]; likewise the other three.
        mode: as in `audit.statistics.epsilon.epsilons`.
    """
    quality = forgetting_quality(unlearned, retrained, mode=mode)
    retain = mean_ratio(retain_accuracy_unlearned, retain_accuracy_retrained)
    test = mean_ratio(test_accuracy_unlearned, test_accuracy_retrained)
    return CompetitionScore(quality.value * retain * test, quality, retain, test)


def mean_ratio(numerator: ArrayLike, denominator: ArrayLike) -> float:
    """Mean accuracy of one bank over that of another; not capped, NaN if the other is 0."""
    top, bottom = as_accuracies("numerator", numerator).mean(), as_accuracies("denominator", denominator).mean()
    return float(top / bottom) if bottom > 0 else np.nan


def forgetting_ratio(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    *,
    seed: int | np.random.SeedSequence,
    n_pairs: int = 100,
    mode: Mode = "official",
    confidence: float = CONFIDENCE,
    retain_accuracy: ArrayLike | None = None,
    test_accuracy: ArrayLike | None = None,
) -> ForgettingRatio:
    """F / F_null, every F in it of m against m models, with an interval over models.

    One draw splits both banks at random into halves U₁|U₂ and R₁|R₂ of m = N // 2 models and computes F(U₁, R₁),
    F(U₂, R₂) and F_null = F(R₂, R₁). The ratio is that of the means over draws.

    The interval is a half-sample bootstrap over models. Halves of one draw share no model, so F(U₁, R₁) and F(U₂, R₂)
    are independent draws of the population and half their mean squared difference estimates the variance of a single
    F; the variance of the *mean* over all halves is that less the variance among halves of the same banks, hence

        Var(mean F) = − Cov(F(U₁, R₁), F(U₂, R₂)) over draws

    (law of total variance). The variance is raised by half its Monte Carlo error and the interval formed for log F. A
    bootstrap with replacement would put copies of one model on both sides, which changes ε, a maximum over rules.

    Args:
        unlearned: margins `(n_models, n_examples)`.
        retrained: margins `(n_models, n_examples)`.
        seed: of the draws.
        n_pairs: number of draws; each computes F three times.
        mode: as in `audit.statistics.epsilon.epsilons`.
        confidence: of the ratio's interval.
        retain_accuracy: of the retrained models `(n_models,)`; with `test_accuracy`, for the null of the score.
        test_accuracy: likewise.

    Raises:
        BankError: fewer than four models in a bank, or shapes that do not fit.
    """
    u, r = as_banks(unlearned, retrained)
    m = min(len(u), len(r)) // 2
    if m < 2:
        raise BankError(f"Expected at least 4 models in each bank, got {len(u)} unlearned and {len(r)} retrained.")
    if n_pairs < 10:
        raise OptionError(f"Expected n_pairs >= 10, got {n_pairs}.")
    accuracies = [
        np.ones(len(r)) if values is None else as_accuracies("accuracy", values, len(r))
        for values in (retain_accuracy, test_accuracy)
    ]
    rng = np.random.default_rng(seed)
    f, eps_f = np.empty((n_pairs, 2)), np.empty((n_pairs, 2))
    g, eps_g, score = (np.empty(n_pairs) for _ in range(3))
    for draw in range(n_pairs):
        mine, theirs = rng.permutation(len(u)), rng.permutation(len(r))
        for half, part in enumerate((slice(0, m), slice(m, 2 * m))):
            quality = forgetting_quality(u[mine[part]], r[theirs[part]], mode=mode)
            f[draw, half], eps_f[draw, half] = quality.value, quality.median_epsilon
        left, right = theirs[:m], theirs[m : 2 * m]
        null = forgetting_quality(r[right], r[left], mode=mode)
        g[draw], eps_g[draw] = null.value, null.median_epsilon
        score[draw] = null.value * np.prod([mean_ratio(values[right], values[left]) for values in accuracies])
    return ForgettingRatio(
        ratio=_ratio_of_means(f, g, confidence),
        forgetting=_central(f),
        null=_central(g),
        median_epsilon=_central(eps_f),
        null_median_epsilon=_central(eps_g),
        null_score=_central(score),
        n_models_a_side=m,
        n_pairs=n_pairs,
        forgetting_draws=f.ravel(),
        null_draws=g,
    )


def quick_ratio(
    unlearned: ArrayLike, retrained: ArrayLike, *, seed: int | np.random.SeedSequence, n_draws: int = 12
) -> float:
    """F / F_null of a few unlearned models, for searches: all of them against equally many retrained ones.

    Gives no interval, so it is not for verdicts. NaN if the null is zero or undetermined.

    Raises:
        BankError: fewer than twice as many retrained models as unlearned ones, or shapes that do not fit.
    """
    u, r = as_banks(unlearned, retrained)
    if len(r) < 2 * len(u):
        raise BankError(f"Expected at least {2 * len(u)} retrained models, got {len(r)}.")
    rng, n = np.random.default_rng(seed), len(u)
    found, null = np.empty(n_draws), np.empty(n_draws)
    for draw in range(n_draws):
        order = rng.permutation(len(r))
        one, other = r[order[:n]], r[order[n : 2 * n]]
        found[draw], null[draw] = forgetting_quality(u, one).value, forgetting_quality(other, one).value
    bottom = np.nan_to_num(null).mean()
    return float(np.nan_to_num(found).mean() / bottom) if bottom > 0 else np.nan


def _ratio_of_means(f: Array, g: Array, confidence: float) -> Interval:
    """Mean of complementary halves `(n_pairs, 2)` over the mean null `(n_pairs,)`; see `forgetting_ratio`."""
    f, g = f[~np.isnan(f).any(axis=1)], g[~np.isnan(g)]
    if len(f) < 2 or len(g) < 2 or not g.mean() > 0:
        return Interval(np.nan, np.nan, np.nan, confidence)
    top, bottom, spread = f.mean(), g.mean(), f.var()
    if top == 0:
        return Interval(0.0, 0.0, 0.0, confidence)
    covariance = ((f[:, 0] - top) * (f[:, 1] - top)).mean()
    variance = np.clip(-covariance + spread / 2 / np.sqrt(len(f)), spread / np.sqrt(len(f)), spread)
    sd = np.sqrt(variance / top**2 + g.var() / bottom**2 / len(g))
    factor = np.exp(stats.norm.ppf(0.5 + confidence / 2) * sd)
    return Interval(float(top / bottom), float(top / bottom / factor), float(top / bottom * factor), confidence)


def _central(draws: Array) -> Interval:
    """Mean of draws of halves and their central 95 %: the spread of one F of m against m models, not of the mean."""
    known = draws[~np.isnan(draws)]
    return percentiles(known.mean() if known.size else np.nan, known)
