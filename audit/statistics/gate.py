"""The gate: one model that is to be deployed, judged against a few reference models.

The question is whether the candidate is a draw from the models that were trained without the forget set (OUT). One
number is taken of every model, `tail_mean`: of each image the median margin over its views, and the mean of the lowest
third of these. What a model remembers of a subject shows in the images that models without the subject get wrong, and
averaging makes the number nearly normal over models. Then

    t = (T(candidate) − mean_OUT) / (s · √(1 + 1/N))

has Student's t distribution with N − 1 degrees of freedom if the N references and the candidate are draws of one
normal distribution (the prediction of one further observation, e.g. Hahn & Meeker, *Statistical Intervals*, 1991,
chapter 4). Unlike a permutation test it has no floor of 1/(N + 1), so that eight references are enough for 5 %. With
the spread of other blocks at hand, s² is shrunk towards it and the degrees grow (Smyth, "Linear models and empirical
Bayes methods", 2004, sections 3 and 6: the moderated t; `pooled_spread` estimates the prior by its moments).

Three sides share α (Bonferroni), so that a retrained model is rejected with probability at most α:

* `UPPER_SHARE`: T too high, as of a model that forgot too little;
* `LOWER_SHARE`: T too low, as of a model that was pushed below what a model without the subject gets;
* `RANK_SHARE`: the mean rank over all margins, in both directions, for changes that the lowest third does not show: the
  same predictive t on the mean ranks, whose spread is taken to be at least that of independent images.

What it cannot know: with N = 8 the false positive rate is α on average over banks; a single bank has luck of its own.
One model shows nothing of a method's spread over runs. Where nothing was learned of a subject (d′ near 0) a model that
forgot nothing passes as often as a retrained one; `power` says so beside each verdict.

How the statistic and the shares were chosen. That it is the lowest third comes from a pilot that looked at the AT&T
subjects s31 and s7: figures on these two are no independent evidence for it. How views and images combine was chosen
on the AT&T subjects that methods are tuned on (s2, s10, s20, s34) and 40 drawn subjects, with 10 OUT models each
(`benchmarks/gate.py --choose`): of the forms of the lowest third this one had the largest d′ on the former, and no
smaller power than the heap of all margins on the latter; with 66 OUT models the forms cannot be told apart on the four
AT&T subjects (`docs/gate.md`). The shares were set before anything was measured with this
module, from the pilot's split of four to one between the upper and the lower side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special, stats

from audit.errors import BankError, OptionError
from audit.statistics.exchangeability import exchangeability, models_needed
from audit.statistics.intervals import CONFIDENCE, Interval
from audit.statistics.margins import Array
from audit.statistics.spread import PooledSpread, are_equal, bank_of, finite, refuse_equal, tail_mean

ALPHA = 0.05
UPPER_SHARE, LOWER_SHARE, RANK_SHARE = 0.7, 0.2, 0.1
"""Of α, for T too high, T too low, and the mean rank in both directions."""
PERMUTATION_MODELS = models_needed(ALPHA)
"""Fewest references for which the exact permutation test stands beside the t test: 39."""


@dataclass(frozen=True)
class EvidenceRatio:
    """p(T | OUT) / p(T | IN): above 1 the candidate looks like a model without the forget set, below 1 like one with.

    Both are predictive t densities, so that the uncertainty of means and spreads is in `value`. `low` to `high` is an
    approximate 95 % interval: the jackknife's standard error of the logarithm over the models of both banks, or 0 to ∞
    where leaving a model out leaves no spread. The ratio weighs two hypotheses; it is not a probability of having
    forgotten.
    """

    value: float
    low: float
    high: float
    confidence: float = CONFIDENCE


@dataclass(frozen=True)
class Gate:
    """The verdict on one candidate and what a report says about it."""

    passed: bool
    """Every side's p-value is at least its share of α: `p_adjusted` is at least α."""
    alpha: float
    alpha_upper: float
    """Level of `p_value`; `alpha_lower` is that of `p_over`, `alpha_rank` that of `mean_rank_p`. They add up to α."""
    alpha_lower: float
    alpha_rank: float
    statistic: float
    """T of the candidate."""
    reference_mean: float
    reference_spread: float
    """s: standard deviation of T over references, shrunk if `pooled` was given."""
    degrees_of_freedom: float
    t: float
    p_value: float
    """Probability of a T this high or higher under a model trained without the forget set."""
    p_over: float
    """Probability of a T this low or lower: small if the candidate was pushed too far (over-forgetting)."""
    mean_rank: float
    """Mean over images and views of the share of references below the candidate; ½ is the middle."""
    mean_rank_p: float
    """Two-sided."""
    p_adjusted: float
    """The smallest of the three p-values, each divided by its share of α; the candidate passes if it is at least α."""
    permutation_p: float | None
    """Exact permutation p-value of T, upper side, a multiple of 1/(N + 1); None below 39 references, where it cannot
    reach 5 % in both directions. It assumes no distribution: a report says where it and `p_value` disagree."""
    permutation_p_over: float | None
    """The same of the lower side."""
    mean_rank_permutation_p: float | None
    """The same of the mean rank, two-sided."""
    learned: Interval | None
    """d′: how far IN lies above OUT, in standard deviations of T over OUT; None without originals. Few references make
    it too large on average, 8 without `pooled` by an eighth. The interval is approximate."""
    power: float | None
    """Probability that a further model that forgot nothing is rejected by this bank for a T too high. None without
    originals: the test may then be blind, and nothing here would tell."""
    n_originals_rejected: int | None
    """Of the originals at hand, put in the candidate's place, how many the whole gate rejects."""
    evidence_ratio: EvidenceRatio | None
    """None without originals."""
    n_models: int
    n_originals: int
    n_views: int
    n_images: int

    @property
    def finding(self) -> str:
        """Which side is the most unusual, in words that continue "the model is unusual"."""
        sides = {
            "with higher margins than theirs, as of a model that forgot too little": self.p_value / UPPER_SHARE,
            "with lower margins than theirs, as of a model that was pushed too far": self.p_over / LOWER_SHARE,
            "by the mean rank of its margins": self.mean_rank_p / RANK_SHARE,
        }
        return min(sides, key=lambda side: sides[side])


def gate(
    candidate: ArrayLike,
    references: ArrayLike,
    *,
    originals: ArrayLike | None = None,
    pooled: PooledSpread | None = None,
    alpha: float = ALPHA,
) -> Gate:
    """Judge one candidate by its margins: is it a draw from the models trained without the forget set?

    A predictive t test of `tail_mean` (Hahn & Meeker, *Statistical Intervals*, 1991, chapter 4); its upper side, its
    lower side and the mean rank share α. With `pooled` it is a moderated t (Smyth, *Statistical Applications in
    Genetics and Molecular Biology* 3(1), 2004). The permutation p-values beside it are exact under exchangeability. d′
    is Glass's Δ (Hedges & Olkin 1985), the evidence ratio's interval a jackknife (Efron 1982). The module's text says
    how statistic and shares of α were chosen, and what no such test can know.

    Args:
        candidate: margins `(n_views, n_images)` of the forget set.
        references: the same of models trained without the forget set, `(n_models, n_views, n_images)`, at least 2.
        originals: the same of models trained with everybody, at least 2; they change no p-value, only what is said of
            the test's power.
        pooled: spread of T over other blocks, from `pooled_spread`; not over the block that is judged.
        alpha: false positive rate of the three sides together, in (0, 1).

    Raises:
        BankError: shapes that do not fit together, an infinite or missing margin, fewer than two models, or models that
            all have the same T.
        OptionError: alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise OptionError(f"Expected alpha in (0, 1), got {alpha}; 0.05 is usual.")
    out = bank_of("references", references)
    shape = out.shape[1:]
    mine = finite("candidate", candidate)
    if mine.shape != shape:
        raise BankError(
            f"Expected candidate of shape (n_views, n_images) = {shape} as the references have it, got {mine.shape}; "
            "score the same images in the same views."
        )
    of_out = tail_mean(out)
    law = law_of("references", of_out, pooled)
    judged = _judge(mine, out, law, alpha)
    above, below = _permutation(judged.statistic, of_out)
    many = len(out) >= PERMUTATION_MODELS
    upper = alpha * UPPER_SHARE
    learned = power = n_rejected = evidence = None
    if originals is not None:
        known = _originals(originals, shape)
        of_in = tail_mean(known)
        law_in = law_of("originals", of_in, None)
        learned = _learned(law, law_in)
        power = _power(law, law_in, upper)
        n_rejected = sum(not _judge(original, out, law, alpha).passed for original in known)
        evidence = _evidence(judged.statistic, of_out, of_in, pooled)
    return Gate(
        passed=judged.passed,
        alpha=alpha,
        alpha_upper=upper,
        alpha_lower=alpha * LOWER_SHARE,
        alpha_rank=alpha * RANK_SHARE,
        statistic=judged.statistic,
        reference_mean=law.mean,
        reference_spread=law.spread,
        degrees_of_freedom=law.degrees,
        t=judged.t,
        p_value=judged.p_value,
        p_over=judged.p_over,
        mean_rank=judged.mean_rank,
        mean_rank_p=judged.mean_rank_p,
        p_adjusted=judged.p_adjusted,
        permutation_p=above if many else None,
        permutation_p_over=below if many else None,
        mean_rank_permutation_p=judged.mean_rank_permutation_p if many else None,
        learned=learned,
        power=power,
        n_originals_rejected=n_rejected,
        evidence_ratio=evidence,
        n_models=len(out),
        n_originals=0 if originals is None else len(known),
        n_views=shape[0],
        n_images=shape[1],
    )


@dataclass(frozen=True)
class Law:
    """What a bank says of T under one further model of its kind: mean + spread · √(1 + 1/n) · t(degrees)."""

    mean: float
    spread: float
    degrees: float
    n_models: int

    @property
    def scale(self) -> float:
        return self.spread * math.sqrt(1 + 1 / self.n_models)

    def t(self, statistic: float) -> float:
        """Student's t of one further model."""
        return (statistic - self.mean) / self.scale


@dataclass(frozen=True)
class _Judged:
    passed: bool
    statistic: float
    t: float
    p_value: float
    p_over: float
    mean_rank: float
    mean_rank_p: float
    p_adjusted: float
    mean_rank_permutation_p: float


def law_of(name: str, statistics: Array, pooled: PooledSpread | None = None) -> Law:
    """The law of a statistic `(n_models,)`, at least two; other tests of one model by few references use it too.

    Raises:
        BankError: all models have the same statistic.
    """
    refuse_equal(name, statistics)
    variance, degrees = _shrunk(statistics, pooled)
    return Law(float(statistics.mean()), math.sqrt(float(variance)), degrees, len(statistics))


def _shrunk(statistics: Array, pooled: PooledSpread | None) -> tuple[Array, float]:
    """Variance over the last axis, shrunk towards the pooled one, and its degrees of freedom."""
    variance, degrees = statistics.var(axis=-1, ddof=1), statistics.shape[-1] - 1.0
    if pooled is None:
        return np.asarray(variance), degrees
    share = degrees / (degrees + pooled.n_degrees)  # 0 for infinitely many pooled degrees
    return np.asarray(share * variance + (1 - share) * pooled.variance), degrees + pooled.n_degrees


def upper_tail(t: float, degrees: float) -> float:
    """Probability that Student's t lies above `t`; SciPy's distribution objects take fifty times as long."""
    return float(special.stdtr(degrees, -t))


def _judge(candidate: Array, references: Array, law: Law, alpha: float) -> _Judged:
    """The three sides, for one model `(n_views, n_images)`."""
    statistic = float(tail_mean(candidate))
    t = law.t(statistic)
    p_value, p_over = upper_tail(t, law.degrees), upper_tail(-t, law.degrees)
    ranked = exchangeability(candidate.ravel(), references.reshape(len(references), -1))
    rank_p = _mean_rank_p(ranked.mean_rank, ranked.reference_mean_ranks, candidate.size)
    p_adjusted = min(1.0, p_value / UPPER_SHARE, p_over / LOWER_SHARE, rank_p / RANK_SHARE)
    return _Judged(
        p_adjusted >= alpha, statistic, t, p_value, p_over, ranked.mean_rank, rank_p, p_adjusted, ranked.p_value
    )


def _mean_rank_p(mine: float, others: Array, n_margins: int) -> float:
    """Predictive t of a mean rank, two-sided.

    Mean ranks of N + 1 models add up to a constant, which changes nothing: t sees differences only. Ranks lie on a
    lattice, so that with few models and images references can have nearly equal mean ranks by luck; their variance is
    therefore taken to be at least (N + 2) / (12 N n), that of n independent ranks. Dependent images only widen it.
    """
    n = len(others)
    variance = max(float(others.var(ddof=1)), (n + 2) / (12 * n * n_margins))
    t = (mine - float(others.mean())) / math.sqrt(variance * (1 + 1 / n))
    return min(1.0, 2 * upper_tail(abs(t), n - 1))


def _permutation(mine: float, others: Array) -> tuple[float, float]:
    """Shares of the N + 1 models with a T at least as high and at least as low as the candidate's."""
    n = len(others) + 1
    return (1 + int((others >= mine).sum())) / n, (1 + int((others <= mine).sum())) / n


def _power(out: Law, originals: Law, level: float) -> float:
    """Probability that one further original has a T with an upper p-value below `level` under this bank."""
    critical = out.mean - float(special.stdtrit(out.degrees, level)) * out.scale
    return upper_tail((critical - originals.mean) / originals.scale, originals.degrees)


def _learned(out: Law, originals: Law) -> Interval:
    """d′ in standard deviations of OUT (Glass's Δ), with its large-sample interval for spreads that differ.

    Variance of the estimate: that of the two means and of the spread it is divided by (Hedges & Olkin, *Statistical
    Methods for Meta-Analysis*, 1985, chapter 5).
    """
    d = (originals.mean - out.mean) / out.spread
    ratio = (originals.spread / out.spread) ** 2
    variance = 1 / out.n_models + ratio / originals.n_models + d * d / (2 * out.degrees)
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Interval(d, d - half, d + half)


def _evidence(statistic: float, out: Array, originals: Array, pooled: PooledSpread | None) -> EvidenceRatio:
    """Ratio of predictive densities at T, with an interval from leaving out one model at a time."""
    value = float(_log_density(statistic, out, pooled) - _log_density(statistic, originals, None))
    error = math.hypot(_jackknife_error(statistic, out, pooled), _jackknife_error(statistic, originals, None))
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * error
    return EvidenceRatio(_exp(value), _exp(value - half), _exp(value + half))


def _log_density(statistic: float, banks: Array, pooled: PooledSpread | None) -> Array:
    """Logarithm of the predictive density at T of each bank's statistics `(…, n)`."""
    variance, degrees = _shrunk(banks, pooled)
    scale = np.sqrt(variance * (1 + 1 / banks.shape[-1]))
    return np.asarray(stats.t.logpdf((statistic - banks.mean(axis=-1)) / scale, degrees) - np.log(scale))


def _jackknife_error(statistic: float, bank: Array, pooled: PooledSpread | None) -> float:
    """Standard error of the log density over the models of a bank (Efron 1982, chapter 3); ∞ where it has none."""
    n = len(bank)
    rest = np.stack([np.delete(bank, i) for i in range(n)])  # (n, n − 1)
    if n < 3 or any(are_equal(values) for values in rest):
        return math.inf
    return math.sqrt((n - 1) * float(np.var(_log_density(statistic, rest, pooled))))


def _exp(log: float) -> float:
    """The exponential, 0 or ∞ where it leaves the range of floats."""
    return math.exp(log) if -745 < log < 709 else (0.0 if log < 0 else math.inf)


def _originals(originals: ArrayLike, shape: tuple[int, ...]) -> Array:
    bank = bank_of("originals", originals)
    if bank.shape[1:] != shape:
        raise BankError(
            f"Expected originals of shape (n_models, n_views, n_images) = (n_models, {shape[0]}, {shape[1]}) as the "
            f"references have it, got {bank.shape}; score the same images in the same views."
        )
    return bank
