"""Empirical ε of every forget example: the official grid of attacks, and the supremum over all thresholds.

Of N unlearned and N retrained models, each forget example has 2N margins. A rule that calls some margins *positive*
has a false positive rate FPR and a false negative rate FNR, and gives (metric report, eq. 1)

    ε = max( log((1 − δ − FPR)/FNR), log((1 − δ − FNR)/FPR) )

The example's ε is the largest over a family of rules. `official` is the grid of the organisers' released scoring code
(google-deepmind/unlearning_evaluation @ ffae0ff): about 160,000 rules an example, described in `_single` and `_double`.
`exact` takes every threshold and every interval that the order statistics distinguish, with either bank as the positive
one; it contains the official grid's rules, so it is never below the official ε.

Special cases, the same in both modes: a bank whose range is below 1 % of the other's gives ε = 50 (*spike rule*); a
rule with FPR = FNR = 0 gives ∞; a rule with exactly one of them 0 is dropped (too few models to tell); ε is clipped
to [0, 50]. An example all of whose rules are dropped is *undetermined* (NaN); the official code stops there with an
error.

How the maximum is found without walking the grid: ε depends on a rule only through the integers (FN, FP), so all values
are in one table; a threshold acts only through the number of margins below it, so the 400 right thresholds fall into
few classes, and the left thresholds, evenly spaced, hit or miss each gap between neighbouring margins. See `_double`.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audit.errors import OptionError, in_range
from audit.statistics.margins import Array, as_banks

Mode = Literal["official", "exact"]
Counts = NDArray[np.intp]

DELTA = 1e-5
EPSILON_CAP = 50.0
THRESHOLDS_PER_UNIT = 100
BUFFER = 2.0
SPIKE_RATIO = 0.01
SATURATION = -float(np.log(1e-45))  # ±103.6: where the official confidence, log(p + 1e-45), stops growing

_N_LEFT = int(np.ceil(2 * BUFFER * THRESHOLDS_PER_UNIT))
_DROPPED = -1.0
_ROUNDING = float(np.finfo(np.float64).eps)


def epsilons(
    unlearned: ArrayLike, retrained: ArrayLike, *, mode: Mode = "official", delta: float = DELTA
) -> NDArray[np.float64]:
    """Empirical ε of every example (metric report, eq. 1 and section 3).

    Args:
        unlearned: margins `(n_models, n_examples)`; ties, constants and infinities are allowed.
        retrained: margins `(m_models, n_examples)`.
        mode: "official" for the organisers' grid, "exact" for all thresholds and intervals.
        delta: δ of (ε, δ)-unlearning, in [0, 1).

    Returns:
        float64 `(n_examples,)` in [0, 50]; NaN where every rule was dropped.

    Raises:
        BankError: shapes that do not fit or fewer than two models; NotANumberError names a NaN margin.
        OptionError: unknown mode, delta out of range.
    """
    if mode not in ("official", "exact"):
        raise OptionError(f"Expected mode to be 'official' or 'exact', got {mode!r}.")
    in_range("delta", delta, 0.0, np.nextafter(1.0, 0.0))
    u, r = as_banks(unlearned, retrained)
    clipped_u, clipped_r = np.clip(u, -SATURATION, SATURATION), np.clip(r, -SATURATION, SATURATION)
    spiky = _is_spike(clipped_u, clipped_r)
    if mode == "official":
        values = _all_official(clipped_u, clipped_r, delta, skip=spiky)
    else:
        values = _all_exact(u, r, delta, skip=spiky)
    values[values == _DROPPED] = np.nan
    values[spiky] = EPSILON_CAP
    return np.minimum(values, EPSILON_CAP)


@lru_cache(maxsize=16)
def rule_table(n_positive: int, n_negative: int, delta: float) -> Array:
    """ε of a rule from its errors: `(n_positive + 1, n_negative + 1)` indexed `[false negatives, false positives]`.

    ∞ where both are 0, −1 where the rule is dropped, otherwise eq. 1 clipped at 0. Read-only: it is shared.
    """
    fnr = (np.arange(n_positive + 1) / n_positive)[:, None]
    fpr = (np.arange(n_negative + 1) / n_negative)[None, :]
    with np.errstate(divide="ignore", invalid="ignore"):
        first = np.log(1 - delta - fpr) - np.log(fnr)
        second = np.log(1 - delta - fnr) - np.log(fpr)
        table = np.clip(np.fmax(first, second), 0.0, None)  # NaN where both are: FPR = FNR = 1
    table[0, :] = table[:, 0] = _DROPPED
    table[np.isnan(table)] = _DROPPED
    table[0, 0] = np.inf
    table.flags.writeable = False
    return table


def _is_spike(u: Array, r: Array) -> NDArray[np.bool_]:
    """Smaller range below 1 % of the larger; two constant banks are no spike (0/0 compares false)."""
    range_u, range_r = np.ptp(u, axis=0), np.ptp(r, axis=0)
    with np.errstate(invalid="ignore"):
        return np.minimum(range_u, range_r) / np.maximum(range_u, range_r) < SPIKE_RATIO


def merged(unlearned: Array, retrained: Array) -> tuple[Array, Counts]:
    """Sorted pooled margins `(n, M)` and, for each prefix length, how many of it are unlearned: `(n, M + 1)`."""
    pooled = np.concatenate([unlearned, retrained]).T
    order = np.argsort(pooled, axis=1, kind="stable")
    counts = np.zeros((pooled.shape[0], pooled.shape[1] + 1), dtype=np.intp)
    np.cumsum(order < len(unlearned), axis=1, out=counts[:, 1:])
    return np.take_along_axis(pooled, order, axis=1), counts


def _all_official(u: Array, r: Array, delta: float, *, skip: NDArray[np.bool_]) -> Array:
    retrained_is_positive = np.median(r, axis=0) > np.median(u, axis=0)
    range_u, range_r = np.ptp(u, axis=0), np.ptp(r, axis=0)
    # The double threshold's positive bank is the one with the smaller range; a tie swaps the single threshold's choice.
    retrained_is_narrow = np.where(range_u == range_r, ~retrained_is_positive, range_r < range_u)
    lows, highs = (np.where(retrained_is_narrow, side(r, axis=0), side(u, axis=0)) for side in (np.min, np.max))
    pooled, count_u = merged(u, r)
    prefix = np.arange(pooled.shape[1] + 1)
    tables = {False: rule_table(len(u), len(r), delta), True: rule_table(len(r), len(u), delta)}
    values = np.full(u.shape[1], _DROPPED)
    for i in np.flatnonzero(~skip):
        below = {False: count_u[i], True: prefix - count_u[i]}  # keyed by "is it the retrained bank"
        positive, narrow = bool(retrained_is_positive[i]), bool(retrained_is_narrow[i])
        single = _single(pooled[i], below[positive], below[not positive], tables[positive])
        double = _double(pooled[i], below[narrow], below[not narrow], tables[narrow], (lows[i], highs[i]))
        values[i] = max(single, double)
    return values


def _single(pooled: Array, below_p: Counts, below_n: Counts, table: Array) -> float:
    """Best rule "positive iff f ≥ t", t in linspace(min, max of both banks, ceil((max − min)·100)).

    The rule that calls c margins negative exists iff a threshold lies above margin c − 1 and not above margin c.
    """
    low, high = float(pooled[0]), float(pooled[-1])
    thresholds = _linspace(low, high, math.ceil((high - low) * THRESHOLDS_PER_UNIT))
    reached = np.searchsorted(thresholds, pooled, side="right")
    value = table[below_p[:-1], below_n[-1] - below_n[:-1]]
    value[1:][reached[1:] == reached[:-1]] = _DROPPED
    return float(value.max()) if len(thresholds) else _DROPPED


def _double(pooled: Array, below_p: Counts, below_n: Counts, table: Array, span: tuple[float, float]) -> float:
    """Best rule "positive iff l ≤ f ≤ r" of the official grid; the positive bank ranges over `span`, of width w.

    Right thresholds r in linspace(low + w − 2, high + 2, ceil(length·100)); for each r, 400 left thresholds in
    linspace(r − w − 2, r − w + 2). With a = margins ≤ r and c = margins < l the errors depend on (a, c) only.

    Rows r with equal a form a class i₀ … i₁. Left threshold j of row i is start + i·h + j·h′ with spacings that
    differ by 1 part in 400 at most: it lies near start + k·h′, k = i + j, and drifts by i·(h′ − h) from there. The
    gap below margin c surely holds a threshold of the class if it holds the whole drift of some k, and possibly if it
    touches one; a tolerance far above rounding error widens the doubt. If the best sure rule is as good as the best
    possible one, it is the answer; else only the classes in doubt are walked as the official code walks all.
    """
    width = span[1] - span[0]
    first, last = span[0] + width - BUFFER, span[1] + BUFFER
    n_right = math.ceil((last - first) * THRESHOLDS_PER_UNIT)
    rights = _linspace(first, last, n_right)
    row = np.append(np.searchsorted(rights, pooled, side="left"), n_right)  # first row that takes in margin a − 1
    a = np.flatnonzero(row[1:] > row[:-1]) + 1
    starts, ends = row[a - 1], row[a] - 1  # i₀, i₁
    begin, step = float(rights[0]) - width - BUFFER, 2 * BUFFER / (_N_LEFT - 1)
    c_first, c_end = np.searchsorted(pooled, (begin, rights[-1] - width + BUFFER))
    c_end = min(c_end, len(pooled) - 1, a[-1] - 1) + 1
    if c_end <= c_first:
        return _DROPPED

    # (classes, gaps): ε of the rule that takes in the margins c … a − 1
    n_columns = table.shape[1]
    inside = below_p * n_columns - below_n
    rule = (below_p[-1] * n_columns - inside[a])[:, None] + inside[c_first:c_end]
    value = table.ravel().take(rule, mode="clip")
    value[np.arange(c_first, c_end) >= a[:, None]] = _DROPPED

    at = (pooled[max(c_first - 1, 0) : c_end] - begin) / step  # margins in units of k
    lower, upper = (at[:-1], at[1:]) if c_first else (np.append(-np.inf, at[:-1]), at)
    doubt = 1e-9 + 64 * _ROUNDING * max(-pooled[0], pooled[-1], BUFFER) / step
    drift = 1 - (last - first) / max(n_right - 1, 1) / step
    drifts = np.stack([starts, ends]) * drift if abs(drift) > _ROUNDING * n_right else np.zeros((2, 1))
    least, most = np.sort(drifts, axis=0)[:, :, None]
    k_range = starts[:, None] - 1, ends[:, None] + _N_LEFT - 1
    sure = _holds_threshold(lower + (most + doubt), upper + (least - doubt), k_range)
    best = float(np.where(sure, value, _DROPPED).max())
    better = value > best
    if better.any():
        possible = _holds_threshold(lower + (least - doubt), upper + (most + doubt), k_range)
        doubtful = np.flatnonzero((better & possible).any(axis=1))
        if doubtful.size:
            rows = np.concatenate([np.arange(starts[i], ends[i] + 1) for i in doubtful])
            best = max(best, _walk(pooled, below_p, below_n, table, rights=rights[rows], width=width))
    return best


def _linspace(first: float, last: float, n: int) -> Array:
    """`np.linspace(first, last, n)` to the bit, without its overhead."""
    if n < 2:
        return np.full(max(n, 0), first)
    values = np.arange(n, dtype=np.float64)
    values *= (last - first) / (n - 1)
    values += first
    values[-1] = last
    return values


def _holds_threshold(lower: Array, upper: Array, k_range: tuple[Counts, Counts]) -> NDArray[np.bool_]:
    """Whether a whole number k with k_range[0] < k ≤ k_range[1] lies in (lower, upper]."""
    return np.minimum(np.floor(upper), k_range[1]) > np.maximum(np.floor(lower), k_range[0])


def _walk(pooled: Array, below_p: Counts, below_n: Counts, table: Array, *, rights: Array, width: float) -> float:
    """Best rule of the double-threshold grid for the given right thresholds, every left threshold formed."""
    lefts = np.linspace(rights - width - BUFFER, rights - width + BUFFER, _N_LEFT)  # (400, n_right)
    a = np.searchsorted(pooled, rights, side="right")[None, :]
    c = np.minimum(np.searchsorted(pooled, lefts, side="left"), a)  # l > r takes nothing in
    return float(table[below_p[-1] - below_p[a] + below_p[c], below_n[a] - below_n[c]].max())


def _all_exact(u: Array, r: Array, delta: float, *, skip: NDArray[np.bool_]) -> Array:
    """Supremum over all intervals of the pooled order statistics, with either bank as the positive one inside."""
    if_u, if_r = rule_table(len(u), len(r), delta)[::-1, :], rule_table(len(r), len(u), delta)[::-1, :].T
    table = np.maximum(if_u, if_r).ravel()  # [unlearned inside, retrained inside]
    pooled, count_u = merged(u, r)
    values = np.full(u.shape[1], _DROPPED)
    for i in np.flatnonzero(~skip):
        _, key, first, last = intervals(pooled[i], count_u[i], n_columns=len(r) + 1)
        values[i] = table.take(key[last] - key[first]).max()
    return values


def intervals(pooled: Array, count_u: Counts, *, n_columns: int) -> tuple[Counts, Counts, Counts, Counts]:
    """All sets of margins that an interval can take in.

    Args:
        pooled: sorted margins of one example `(M,)`.
        count_u: of its first k, how many are of the unlearned bank, `(M + 1,)`.
        n_columns: retrained models + 1.

    Returns:
        `cut`: prefix lengths at which a threshold fits (not between equal margins); `key`: for each, unlearned
        margins · n_columns + retrained ones; `first`, `last`: every pair of indices into them with first < last. An
        interval takes in `key[last] − key[first]`, which is `unlearned inside · n_columns + retrained inside`.
    """
    cut = np.flatnonzero(np.concatenate([[True], pooled[1:] != pooled[:-1], [True]]))
    key = count_u[cut] * n_columns + (cut - count_u[cut])
    return cut, key, *_pairs(len(cut))


@lru_cache(maxsize=4)
def _pairs(n: int) -> tuple[Counts, Counts]:
    """Indices of all pairs first < last below n."""
    return np.triu_indices(n, k=1)
