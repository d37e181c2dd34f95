"""Three setups, which are ways to draw the banks of an experiment, and E experiments of each with intervals.

Names from the competition paper (arXiv 2406.09073); the definitions are reconstructed from the official code:

* `full`: every experiment trains its own originals, unlearned and retrained models. Experiments are independent.
* `reuse_n_n`: N retrained models and N pairs original → unlearned are made once; every experiment draws from both
  pools.
* `reuse_n_1`: the same, but all unlearning runs start from one original model. The official code does this, and it is
  the case of the one model in production. With several originals, an experiment draws one of them first.

Experiments of the reuse setups draw *without* replacement, because two copies of a model in one bank change ε, which is
a maximum over rules. They share their pools, so their spread is that of one experiment of that size, not of the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from audit.errors import BankError, OptionError, in_range
from audit.statistics.epsilon import Mode
from audit.statistics.forgetting import competition_score, forgetting_quality
from audit.statistics.intervals import CONFIDENCE, Interval, percentiles, resampled_means
from audit.statistics.margins import Array

Setup = Literal["full", "reuse_n_n", "reuse_n_1"]
SETUPS: tuple[Setup, ...] = ("full", "reuse_n_n", "reuse_n_1")


@dataclass(frozen=True)
class Pool:
    """Models of one kind: margins and accuracies, `(n_sets, n_models, n_examples)` and `(n_sets, n_models)`.

    `n_sets` is the number of experiments for `full`, of originals for the unlearned models of `reuse_n_1`, else 1;
    arrays without that axis are taken as one set.
    """

    margins: Array
    retain_accuracy: Array
    test_accuracy: Array

    def __post_init__(self) -> None:
        margins = np.asarray(self.margins, dtype=np.float64)
        margins = margins[None] if margins.ndim == 2 else margins
        if margins.ndim != 3:
            raise BankError(f"Expected margins (n_sets, n_models, n_examples) of a pool, got {margins.shape}.")
        object.__setattr__(self, "margins", margins)
        for name in ("retain_accuracy", "test_accuracy"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            values = values[None] if values.ndim == 1 else values
            if values.shape != margins.shape[:2]:
                raise BankError(f"Expected {name} of shape {margins.shape[:2]}, got {values.shape}.")
            object.__setattr__(self, name, values)


@dataclass(frozen=True)
class Experiments:
    """E experiments of one setup. Intervals: over experiments for `full`, of one experiment for the reuse kinds."""

    setup: Setup
    n_experiments: int
    n_models: int
    """Models a side in each experiment."""
    score: Interval
    forgetting: Interval
    null: Interval
    """F of retrained against other retrained models; half the pool a side where it does not hold twice `n_models`."""
    retain_ratio: Interval
    test_ratio: Interval
    median_epsilon: Interval
    scores: Array
    """`(n_experiments,)`"""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two setups' rankings of the methods."""

    tau: Interval
    """Kendall's τ-b of the mean scores, interval by bootstrap over experiments."""
    names: tuple[str, ...]


def run_experiments(
    setup: Setup,
    unlearned: Pool,
    retrained: Pool,
    *,
    seed: int | np.random.SeedSequence,
    n_experiments: int = 20,
    n_models: int | None = None,
    mode: Mode = "official",
    confidence: float = CONFIDENCE,
) -> Experiments:
    """Scores of `n_experiments` experiments drawn from the pools as `setup` says.

    Args:
        setup: see the module's text.
        unlearned: pool of unlearned models.
        retrained: pool of retrained models.
        seed: of the draws.
        n_experiments: for `full` at most the number of sets.
        n_models: models a side; default all for `full`, else half of the smaller pool.
        mode: as in `audit.statistics.epsilon.epsilons`.
        confidence: of the intervals.

    Raises:
        BankError: pools that do not fit the setup, or too few models for `n_models`.
    """
    _check(setup, unlearned, retrained, n_experiments)
    smaller = min(unlearned.margins.shape[1], retrained.margins.shape[1])
    size = n_models if n_models is not None else (smaller if setup == "full" else smaller // 2)
    if not 2 <= size <= smaller:
        raise BankError(f"Expected n_models in [2, {smaller}] for these pools, got {size}.")
    rng = np.random.default_rng(seed)
    rows = []
    for experiment in range(n_experiments):
        set_u = experiment if setup == "full" else int(rng.integers(len(unlearned.margins)))
        set_r = experiment if setup == "full" else 0
        pick_u = rng.permutation(unlearned.margins.shape[1])[:size]
        order_r = rng.permutation(retrained.margins.shape[1])
        pick_r = order_r[:size]
        result = competition_score(
            unlearned.margins[set_u, pick_u],
            retrained.margins[set_r, pick_r],
            retain_accuracy_unlearned=unlearned.retain_accuracy[set_u, pick_u],
            retain_accuracy_retrained=retrained.retain_accuracy[set_r, pick_r],
            test_accuracy_unlearned=unlearned.test_accuracy[set_u, pick_u],
            test_accuracy_retrained=retrained.test_accuracy[set_r, pick_r],
            mode=mode,
        )
        side = min(size, len(order_r) // 2)
        null = forgetting_quality(
            retrained.margins[set_r, order_r[-side:]], retrained.margins[set_r, order_r[:side]], mode=mode
        )
        quality = result.forgetting
        rows.append(
            (result.value, quality.value, null.value, result.retain_ratio, result.test_ratio, quality.median_epsilon)
        )
    columns = np.array(rows).T
    draws = 2000

    def summary(column: Array) -> Interval:
        known = column[~np.isnan(column)]
        if not known.size:
            return Interval(np.nan, np.nan, np.nan, confidence)
        replicates = resampled_means(known, draws=draws, rng=rng) if setup == "full" else known
        return percentiles(float(known.mean()), replicates, confidence=confidence)

    score, forgetting, null_value, retain, test, median = (summary(column) for column in columns)
    return Experiments(
        setup, n_experiments, size, score, forgetting, null_value, retain, test, median, scores=columns[0]
    )


def agreement(
    first: Mapping[str, ArrayLike],
    second: Mapping[str, ArrayLike],
    *,
    seed: int | np.random.SeedSequence,
    n_draws: int = 2000,
    confidence: float = CONFIDENCE,
) -> Agreement:
    """Kendall's τ-b between two setups' rankings of the same methods.

    Args:
        first: method name → scores `(n_experiments,)`.
        second: the same methods under another setup.
        seed: of the bootstrap over experiments.
        n_draws: bootstrap draws.
        confidence: of the interval.

    Raises:
        OptionError: fewer than two methods, or not the same ones.
    """
    names = tuple(sorted(first))
    if len(names) < 2 or names != tuple(sorted(second)):
        raise OptionError(f"Expected the same two or more methods, got {sorted(first)} and {sorted(second)}.")
    in_range("n_draws", n_draws, 1, 1_000_000)
    rng = np.random.default_rng(seed)
    sides = [[np.asarray(scores[name], dtype=np.float64) for name in names] for scores in (first, second)]
    means = [np.array([values.mean() for values in side]) for side in sides]
    draws = [np.stack([resampled_means(values, draws=n_draws, rng=rng) for values in side], axis=1) for side in sides]
    value = float(stats.kendalltau(*means).statistic)
    replicates = [stats.kendalltau(a, b).statistic for a, b in zip(*draws, strict=True)]
    return Agreement(percentiles(value, replicates, confidence=confidence), names)


def _check(setup: Setup, unlearned: Pool, retrained: Pool, n_experiments: int) -> None:
    if setup not in SETUPS:
        raise OptionError(f"Expected setup to be one of {', '.join(SETUPS)}, got {setup!r}.")
    in_range("n_experiments", n_experiments, 1, 1_000_000)
    n_u, n_r = len(unlearned.margins), len(retrained.margins)
    if unlearned.margins.shape[2] != retrained.margins.shape[2]:
        raise BankError("Expected pools of the same examples.")
    if setup == "full" and (n_u < n_experiments or n_r < n_experiments):
        raise BankError(f"Expected fresh models for each of {n_experiments} experiments, got {n_u} and {n_r} sets.")
    if setup != "full" and n_r != 1:
        raise BankError(f"Expected one pool of retrained models for {setup}, got {n_r} sets.")
    if setup == "reuse_n_n" and n_u != 1:
        raise BankError(f"Expected one pool of unlearned models, each from its own original, got {n_u} sets.")
