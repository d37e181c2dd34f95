"""Everybody else: did erasing some subjects expose others, who stay, more than retraining would have?

A model that fits its retained images more closely after unlearning tells more of them: somebody's membership becomes
easier to infer because somebody else left. Asked of each retained subject is whether their T (`tail_mean` of the
margins, as the gate takes it) is higher than that of models retrained without the forget set, which learned from the
same retained subjects. With N references of mean m and standard deviation s of T the predictive t of the gate,

    t = (T(candidate) − m) / (s √(1 + 1/N)),

has Student's t distribution with N − 1 degrees of freedom under a retrained model; its upper tail is the p-value.

Over subjects the false discovery rate is controlled by Benjamini & Hochberg (1995): of the subjects named as more
exposed, at most a share α are so by chance, on average. That holds if the p-values are independent or positively
dependent on each (PRDS: Benjamini & Yekutieli 2001). It is an *assumption* here: all subjects are judged by the same
references and the same candidate. A candidate that happens to fit all images a little more closely raises all t
together, which is positive dependence; that a network fits some subjects at others' cost would be negative. If nobody
is more exposed, a retrained model has anybody beyond α with probability at most α, see
`docs/blind-spots.md`.

It looks at the margins of the very images that were learned from, and at one side: somebody less exposed is not told
of. No subject is named in what it gives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from audit.errors import BankError, OptionError
from audit.statistics.gate import ALPHA, law_of, upper_tail
from audit.statistics.margins import Array, as_bank, as_row
from audit.statistics.spread import are_equal


@dataclass(frozen=True)
class Exposure:
    """What is said of the retained subjects under one candidate."""

    n_more_exposed: int
    """Subjects beyond α by Benjamini & Hochberg."""
    largest_t: float
    """Predictive t of the subject who became the most exposed; NaN if no subject could be judged."""
    smallest_adjusted_p: float
    """Theirs, adjusted for all subjects; below α if and only if there is somebody beyond it."""
    mean_t: float
    """Over subjects; near 0 for a retrained model."""
    n_subjects: int
    """Judged; whoever all references answer exactly alike is left out."""
    alpha: float


def exposure(candidate: ArrayLike, references: ArrayLike, *, alpha: float = ALPHA) -> Exposure:
    """Which retained subjects does one model expose more than models retrained without the forget set do?

    Args:
        candidate: T of each retained subject, `(n_subjects,)`, float.
        references: the same of models that learned from these subjects but not from the forget set,
            `(n_models >= 2, n_subjects)`.
        alpha: false discovery rate, in (0, 1).

    Raises:
        BankError: shapes that do not fit, or fewer than two references.
        NotANumberError: a T is NaN.
        OptionError: alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise OptionError(f"Expected alpha in (0, 1), got {alpha}; 0.05 is usual.")
    out = as_bank("references", references)
    mine = as_row("candidate", candidate, out.shape[1])
    ts, p_values = [], []
    for statistic, of_out in zip(mine, out.T, strict=True):
        if not are_equal(of_out):
            law = law_of("references", of_out)
            ts.append(law.t(statistic))
            p_values.append(upper_tail(ts[-1], law.degrees))
    if not ts:
        return Exposure(0, math.nan, 1.0, math.nan, 0, alpha)
    adjusted = stats.false_discovery_control(p_values, method="bh")
    return Exposure(
        n_more_exposed=int((adjusted <= alpha).sum()),
        largest_t=float(np.max(ts)),
        smallest_adjusted_p=float(adjusted.min()),
        mean_t=float(np.mean(ts)),
        n_subjects=len(ts),
        alpha=alpha,
    )


@dataclass(frozen=True)
class ExposedByRuns:
    """The same over a method's runs that forget one subject."""

    share: float
    """Share of the runs that expose anybody more; a retrained model does with probability at most α."""
    n_more_exposed: tuple[int, ...]
    """Of each run, subjects beyond α."""
    largest_t: float
    """Largest over all runs."""
    mean_t: float
    """Over runs and subjects: above 0 if retained subjects are more exposed all in all."""
    n_subjects: int
    n_runs: int
    alpha: float


def exposed_by_runs(runs: ArrayLike, references: ArrayLike, *, alpha: float = ALPHA) -> ExposedByRuns:
    """`exposure` of each run `(n_runs, n_subjects)` by references `(n_models, n_subjects)`.

    Raises:
        BankError, NotANumberError, OptionError: as `exposure`; a bank without runs.
    """
    mine: Array = as_bank("runs", runs, min_models=1)
    found = [exposure(run, references, alpha=alpha) for run in mine]
    if found[0].n_subjects == 0:
        raise BankError("Expected references that differ, got the same T of every retained subject from all of them.")
    counts = tuple(one.n_more_exposed for one in found)
    return ExposedByRuns(
        share=float(np.mean([count > 0 for count in counts])),
        n_more_exposed=counts,
        largest_t=max(one.largest_t for one in found),
        mean_t=float(np.mean([one.mean_t for one in found])),
        n_subjects=found[0].n_subjects,
        n_runs=len(found),
        alpha=alpha,
    )
