"""Exchangeability test: an exact permutation p-value of one model among reference models.

If the candidate and the N references are exchangeable, each of the N + 1 models is equally likely to be the most
unusual. Each example ranks the N + 1 models by margin. A model's score is its mean rank over the forget set, its
unusualness the distance of the score from the middle, and p is the share of the N + 1 models that are at least as
unusual as the candidate. Whole models are compared, so the examples of a subject may depend on each other in any way.

An exchangeable candidate has p ≤ α with probability at most α, and without ties exactly α up to 1/(N + 1). The test
detects a shift of the whole forget set. Its power is low for few, correlated images, and it cannot detect a changed
spread, which one model does not show. It complements the comparison of banks and does not replace it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from audit.errors import in_range
from audit.statistics.margins import Array, as_bank, as_row


@dataclass(frozen=True)
class Exchangeability:
    """Result of the test of one model among the references."""

    p_value: float
    """Permutation p-value, a multiple of 1/(N + 1)."""
    mean_rank: float
    """Mean over examples of the share of references below the candidate, in [0, 1]."""
    reference_mean_ranks: Array
    """Mean rank of every reference among the others and the candidate, `(n_models,)`."""
    n_models: int


def exchangeability(candidate: ArrayLike, retrained: ArrayLike) -> Exchangeability:
    """Permutation test of a candidate's margins `(n_examples,)` against a bank `(n_models, n_examples)`.

    Raises:
        BankError: shapes that do not match, or fewer than two reference models.
        NotANumberError: a NaN margin.
    """
    bank = as_bank("retrained", retrained)
    row = as_row("candidate", candidate, bank.shape[1])
    ranks, unusual = _rank_sums(np.vstack([row, bank]))
    shares = (ranks / bank.shape[1] - 1) / len(bank)
    return Exchangeability(
        p_value=float((unusual >= unusual[0]).mean()),
        mean_rank=float(shares[0]),
        reference_mean_ranks=shares[1:],
        n_models=len(bank),
    )


def leave_one_out(retrained: ArrayLike) -> Array:
    """p-value of every reference against all others, `(n_models,)`: the test's false positives on this bank."""
    _, unusual = _rank_sums(as_bank("retrained", retrained, min_models=3))
    return (unusual[None, :] >= unusual[:, None]).mean(axis=1)


def rejected_share(candidates: ArrayLike, retrained: ArrayLike, *, alpha: float) -> float:
    """Share of candidates `(n_candidates, n_examples)`, each alone against the bank, with p < alpha.

    This is the power if they are originals, which forgot nothing, and the false positive rate if they are retrains.
    """
    in_range("alpha", alpha, 0.0, 1.0)
    rows = as_bank("candidates", candidates, min_models=1)
    return float(np.mean([exchangeability(row, retrained).p_value < alpha for row in rows]))


def _rank_sums(rows: Array) -> tuple[Array, Array]:
    """Sum over examples of each model's rank (ties shared), and its distance from the middle; `(n,)` each.

    Both are multiples of ½ and therefore exact in floating point, so equal models compare equal.
    """
    sums = stats.rankdata(rows, axis=0).sum(axis=1)
    return sums, np.abs(sums - rows.shape[1] * (len(rows) + 1) / 2)


def models_needed(alpha: float) -> int:
    """Fewest references for a two-sided test at level alpha: each tail must be able to hold alpha/2, N ≥ 2/α − 1."""
    in_range("alpha", alpha, 0.0, 1.0)
    return 0 if alpha == 0 else math.ceil(2 / alpha - 1 - 1e-9)
