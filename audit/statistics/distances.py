"""Distances between two banks, and whether they are larger than chance.

Per example: the two-sample Kolmogorov–Smirnov test, with the false discovery rate controlled (Benjamini & Hochberg
1995), and the Kullback–Leibler divergence in both directions. For the whole forget set: two p-values by permuting
*models*. Examples of one subject are correlated within a model, so permuting examples or multiplying their p-values
would be far too liberal; whole models are exchangeable under the hypothesis that unlearned and retrained models have
the same distribution.

KS detects smaller differences than the empirical ε and F; ε and F measure how large a difference is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import spatial, special, stats

from audit.errors import BankError, OptionError, in_range
from audit.statistics.epsilon import SATURATION
from audit.statistics.margins import Array, as_banks

_CHUNK_BYTES = 32_000_000


@dataclass(frozen=True)
class Detection:
    """Differences between the banks, by example and over the forget set."""

    ks: Array
    """KS distance of each example `(n_examples,)`, in [0, 1]."""
    ks_p_values: Array
    """Exact two-sample p-values `(n_examples,)`."""
    ks_adjusted: Array
    """p-values adjusted for the false discovery rate `(n_examples,)`; those at or below `fdr` are rejected."""
    n_rejected: int
    """Examples rejected at false discovery rate `fdr`."""
    fdr: float
    ks_mean: float
    """Mean KS distance over the forget set."""
    ks_combined_p: float
    """p-value of the mean KS distance by permuting models; valid for dependent examples."""
    energy: float
    """Energy distance between models as points with one coordinate an example (Székely & Rizzo 2013)."""
    energy_p: float
    """p-value of the energy distance by permuting models."""
    kl_unlearned_retrained: Array
    """KL(unlearned ‖ retrained) of each example in nats `(n_examples,)`; unbiased, so it may be slightly negative."""
    kl_retrained_unlearned: Array
    """KL(retrained ‖ unlearned) of each example."""
    n_permutations: int


def detect(
    unlearned: ArrayLike,
    retrained: ArrayLike,
    *,
    seed: int | np.random.SeedSequence,
    n_permutations: int = 999,
    fdr: float = 0.05,
) -> Detection:
    """All distances between two banks `(n_models, n_examples)`.

    Args:
        unlearned: margins.
        retrained: margins.
        seed: of the permutations.
        n_permutations: the smallest combined p-value is 1/(n_permutations + 1).
        fdr: false discovery rate for `n_rejected`.

    Raises:
        BankError: banks that do not match, fewer than four models in one, or a NaN margin.
        OptionError: fdr out of range or fewer than 19 permutations.
    """
    in_range("fdr", fdr, 0.0, 1.0)
    u, r = as_banks(unlearned, retrained)
    u, r = np.clip(u, -SATURATION, SATURATION), np.clip(r, -SATURATION, SATURATION)
    labels = permuted_labels(len(u), len(r), n_permutations=n_permutations, seed=seed)
    distances = ks_statistics(np.concatenate([u, r]), labels)  # (1 + n_permutations, n_examples)
    means = distances.mean(axis=1)
    energies = energy_distances(np.concatenate([u, r]), labels)
    p_values = ks_p_values(u, r)
    adjusted = np.asarray(stats.false_discovery_control(p_values, method="bh"))
    return Detection(
        ks=distances[0],
        ks_p_values=p_values,
        ks_adjusted=adjusted,
        n_rejected=int((adjusted <= fdr).sum()),
        fdr=fdr,
        ks_mean=float(means[0]),
        ks_combined_p=_permutation_p(means),
        energy=float(energies[0]),
        energy_p=_permutation_p(energies),
        kl_unlearned_retrained=kl_divergences(u, r),
        kl_retrained_unlearned=kl_divergences(r, u),
        n_permutations=n_permutations,
    )


def permuted_labels(
    n_unlearned: int, n_retrained: int, *, n_permutations: int, seed: int | np.random.SeedSequence
) -> NDArray[np.bool_]:
    """Random labels, True for unlearned: `(1 + n_permutations, n_models)`; the first row has the true labels."""
    if n_permutations < 19:
        raise OptionError(f"Expected n_permutations >= 19, got {n_permutations}: p could not reach 0.05.")
    truth = np.arange(n_unlearned + n_retrained) < n_unlearned
    shuffled = np.random.default_rng(seed).permuted(np.tile(truth, (n_permutations, 1)), axis=1)
    return np.concatenate([truth[None], shuffled])


def ks_statistics(pooled: Array, labels: NDArray[np.bool_]) -> Array:
    """Two-sample KS distances of every example under every labelling of the models.

    Args:
        pooled: margins `(n_models, n_examples)` of both banks.
        labels: `(n_labellings, n_models)`, True for one bank; all rows with the same number of True.

    Returns:
        float64 `(n_labellings, n_examples)`.
    """
    n_models, n_examples = pooled.shape
    n_first = int(labels[0].sum())
    order = np.argsort(pooled, axis=0, kind="stable").T  # (n_examples, n_models)
    ordered = np.take_along_axis(pooled.T, order, axis=1)
    inner = np.ones((n_examples, n_models), dtype=bool)
    inner[:, :-1] = ordered[:, 1:] > ordered[:, :-1]  # the two CDFs may be compared only past the last of equal margins
    ties = not inner.all()
    # steps of |F − G| in units of 1/(n₁ n₂): integers, so that equal distances compare equal
    steps = np.where(labels, n_models - n_first, -n_first).astype(np.int32)  # (n_labellings, n_models)
    chunk = max(1, _CHUNK_BYTES // (4 * n_models * n_examples))
    largest = np.empty((len(labels), n_examples), dtype=np.int64)
    for start in range(0, len(labels), chunk):
        walks = np.cumsum(steps[start : start + chunk][:, order], axis=2, dtype=np.int32)
        if ties:
            walks *= inner
        largest[start : start + chunk] = np.maximum(walks.max(axis=2), -walks.min(axis=2))
    return largest / (n_first * (n_models - n_first))


def ks_p_values(unlearned: Array, retrained: Array) -> Array:
    """Exact two-sided two-sample KS p-values of every example (SciPy), `(n_examples,)`."""
    return np.asarray(stats.ks_2samp(unlearned, retrained, axis=0, method="auto").pvalue)


def energy_distances(pooled: Array, labels: NDArray[np.bool_]) -> Array:
    """Energy distances 2E‖U − R‖ − E‖U − U′‖ − E‖R − R′‖ under every labelling (V-statistics, ≥ 0).

    Args:
        pooled: margins `(n_models, n_examples)`; a model is a point, the norm Euclidean.
        labels: as in `ks_statistics`.

    Returns:
        float64 `(n_labellings,)`.
    """
    between = spatial.distance.squareform(spatial.distance.pdist(pooled))
    weights = labels / labels.sum(axis=1, keepdims=True) - ~labels / (~labels).sum(axis=1, keepdims=True)
    return np.maximum(-np.einsum("bi,bi->b", weights @ between, weights), 0.0)


def kl_divergences(first: Array, second: Array) -> Array:
    """KL(first ‖ second) of every example in nats, taking both banks' margins as Gaussian, `(n_examples,)`.

    Margins are close to Gaussian over models (Carlini et al., arXiv 2112.03570, section 5). Nearest-neighbour
    estimators miss half of a divergence in the tails at these N. With
    sample means a, b and variances s, t of n and m margins, c = (m − 1)/(m − 3), λ(k) = ψ((k − 1)/2) − log((k − 1)/2)
    and ψ the digamma,

        D̂ = ½ [ log t − log s − λ(m) + λ(n) + (s + (a − b)² − s/n)/(c t) − 1/m − 1 ]

    is unbiased for ½ [log(τ²/σ²) + (σ² + (μ − ν)²)/τ² − 1]: it averages to 0 for equal banks and may be slightly
    negative. ∞ where one bank is constant, or both are constant and differ; 0 where both are constant and equal.

    Raises:
        BankError: fewer than two models in `first` or four in `second`.
    """
    n, m = len(first), len(second)
    if n < 2 or m < 4:
        raise BankError(f"Expected at least 2 models against 4, got {n} against {m}.")
    gap = first.mean(axis=0) - second.mean(axis=0)
    s, t = (np.where(np.ptp(bank, axis=0) == 0, 0.0, bank.var(axis=0, ddof=1)) for bank in (first, second))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.log(t) - np.log(s) - _log_bias(m) + _log_bias(n)
        values = (spread + (s + gap**2 - s / n) / t * (m - 3) / (m - 1) - 1 / m - 1) / 2
    degenerate = (s == 0) | (t == 0)
    return np.where(degenerate, np.where((s == t) & (first[0] == second[0]), 0.0, np.inf), values)


def _log_bias(n: int) -> float:
    """Expected log of a sample variance of n Gaussian draws, less the log of the true one."""
    half = (n - 1) / 2
    return float(special.digamma(half) - np.log(half))


def _permutation_p(statistics: Array) -> float:
    """Share of labellings, the true one first and included, whose statistic is at least the true one's."""
    return float((statistics >= statistics[0] * (1 - 1e-12)).mean())
