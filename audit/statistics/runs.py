"""What is told of a method by many of its runs on one subject, beside models retrained without the subject.

Tested in `tests/audit/test_qualification.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from audit.statistics.distances import detect
from audit.statistics.forgetting import forgetting_ratio
from audit.statistics.gate import gate
from audit.statistics.intervals import CONFIDENCE, Interval, clopper_pearson
from audit.statistics.spread import tail_mean

UNKNOWN = Interval(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Rejected:
    """Runs that the gate rejects, each judged by all references of the probe subject."""

    share: Interval
    """With its exact binomial interval (Clopper & Pearson 1934) over runs; NaN where the gate cannot judge."""
    n_rejected: int
    n_too_high: int
    """T too high: too little forgotten. A run may be rejected on several sides."""
    n_too_low: int
    """T too low: pushed below what a model without the subject gets."""
    n_mean_rank: int
    """By the mean rank over all margins."""
    n_runs: int


def rejected_runs(runs: ArrayLike, references: ArrayLike) -> Rejected:
    """How many of the runs `(n_runs, n_views, n_images)` the gate rejects by references `(n_models, …)`."""
    mine = np.asarray(runs, dtype=np.float64)
    if not vary(references):
        return Rejected(UNKNOWN, 0, 0, 0, 0, len(mine))
    judged = [gate(run, references) for run in mine]
    n, k = len(judged), sum(not each.passed for each in judged)
    low, high = clopper_pearson(k, n, alpha=1 - CONFIDENCE)
    return Rejected(
        share=Interval(k / n, float(low), float(high)),
        n_rejected=k,
        n_too_high=sum(each.p_value < each.alpha_upper for each in judged),
        n_too_low=sum(each.p_over < each.alpha_lower for each in judged),
        n_mean_rank=sum(each.mean_rank_p < each.alpha_rank for each in judged),
        n_runs=n,
    )


def view_shifts(runs: ArrayLike, references: ArrayLike) -> tuple[float, ...]:
    """How far the runs' mean margin lies above the references', of each view in the references' standard deviations."""
    mine, theirs = (np.asarray(bank, dtype=np.float64).mean(axis=2) for bank in (runs, references))  # (n, n_views)
    spread = theirs.std(axis=0, ddof=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        shifts = (mine.mean(axis=0) - theirs.mean(axis=0)) / spread
    return tuple(float(shift) if math.isfinite(shift) else math.nan for shift in shifts)


def view_figures(
    runs: ArrayLike, references: ArrayLike, seed: np.random.SeedSequence
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """F / F_null and the p-value of the mean KS distance, of each view of `(n_models, n_views, n_images)`."""
    mine, theirs = (np.asarray(bank, dtype=np.float64) for bank in (runs, references))
    n_pairs = int(np.clip(2500 // mine.shape[2], 20, 100))
    ratios, p_values = [], []
    for view, of_view in enumerate(seed.spawn(mine.shape[1])):
        of_forgetting, of_detection = of_view.spawn(2)
        one, other = mine[:, view], theirs[:, view]
        ratios.append(forgetting_ratio(one, other, seed=of_forgetting, n_pairs=n_pairs).ratio.value)
        p_values.append(detect(one, other, seed=of_detection).ks_combined_p)
    return tuple(ratios), tuple(p_values)


def learned(references: ArrayLike, originals: ArrayLike) -> Interval:
    """d′: how far T of the originals lies above that of the references, in the references' standard deviations.

    With several originals it is the gate's (Glass's Δ). With one, the spread of originals is taken to be that of the
    references: the estimate's variance is then 1 + 1/N + d²/(2(N − 1)), and the interval is wide. NaN where the
    references have no spread.
    """
    out, known = np.asarray(references, dtype=np.float64), np.asarray(originals, dtype=np.float64)
    if not vary(out):
        return UNKNOWN
    if len(known) > 1 and vary(known):
        found = gate(known[0], out, originals=known).learned
        return UNKNOWN if found is None else found
    n, of_out = len(out), tail_mean(out)
    d = float((tail_mean(known).mean() - of_out.mean()) / of_out.std(ddof=1))
    half = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(1 + 1 / n + d * d / (2 * (n - 1)))
    return Interval(d, d - half, d + half)


def vary(bank: ArrayLike) -> bool:
    """Whether T differs over the models by more than rounding; else nothing can be told from them."""
    statistics = tail_mean(bank)
    return float(np.ptp(statistics)) > 1e-9 * max(1.0, float(np.abs(statistics).max()))
