"""Is the deployed model one of the retrained ones? An exact permutation p-value, valid for dependent examples.

Under the hypothesis that candidate and N references are exchangeable, any of the N + 1 models is equally likely to be
the most unusual. Each example ranks the N + 1 models by margin; a model's score is its mean rank over the forget set,
its unusualness the distance of that score from the middle; p is the share of the N + 1 models at least as unusual as
the candidate. Models are compared as wholes, so examples of one person may depend on each other in any way.

p ≤ α happens to an exchangeable candidate with probability at most α, and equal to it up to 1/(N + 1) without ties.
The test sees a shift of the whole forget set; it is weak for few, correlated images, and cannot see a changed spread,
for which one model is not enough: a gate for every request, not a substitute for the banks.
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
    """The deployed model among the references."""

    p_value: float
    """Permutation p-value, a multiple of 1/(N + 1)."""
    mean_rank: float
    """Mean over examples of the share of references below the candidate: 0 all above it, ½ the middle, 1 all below."""
    reference_mean_ranks: Array
    """The same of every reference among the others and the candidate, `(n_models,)`."""
    n_models: int

    @property
    def smallest_p(self) -> float:
        """The least p-value this bank can give."""
        return 1 / (self.n_models + 1)


def exchangeability(candidate: ArrayLike, retrained: ArrayLike) -> Exchangeability:
    """Permutation test of a candidate's margins `(n_examples,)` against a bank `(n_models, n_examples)`."""
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
    """p-value of every reference against all others, `(n_models,)`: the test's own false alarms on this bank."""
    _, unusual = _rank_sums(as_bank("retrained", retrained, min_models=3))
    return (unusual[None, :] >= unusual[:, None]).mean(axis=1)


def rejected_share(candidates: ArrayLike, retrained: ArrayLike, *, alpha: float) -> float:
    """Share of candidates `(n_candidates, n_examples)`, each alone against the bank, with p < alpha.

    The power if they are bad ones, such as originals that unlearned nothing; the false alarm rate if they are retrains.
    """
    in_range("alpha", alpha, 0.0, 1.0)
    rows = as_bank("candidates", candidates, min_models=1)
    return float(np.mean([exchangeability(row, retrained).p_value < alpha for row in rows]))


def _rank_sums(rows: Array) -> tuple[Array, Array]:
    """Sum over examples of each model's rank among all, ties shared, and its distance from the middle; `(n,)` each.

    Both are multiples of ½ and so exact in floating point: equal models compare equal.
    """
    sums = stats.rankdata(rows, axis=0).sum(axis=1)
    return sums, np.abs(sums - rows.shape[1] * (len(rows) + 1) / 2)


def models_needed(alpha: float) -> int:
    """Fewest references for a two-sided test at level alpha: each tail must be able to hold alpha/2, N ≥ 2/α − 1."""
    in_range("alpha", alpha, 0.0, 1.0)
    return 0 if alpha == 0 else math.ceil(2 / alpha - 1 - 1e-9)
