"""Everybody else: against loops, by simulated retrains, and who is named.

Simulations have fixed seeds. A rate is compared with the central 99.9 % of its binomial.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from audit.errors import BankError, NotANumberError, OptionError
from audit.statistics.exposure import exposed_by_runs, exposure


def bank(rng: np.random.Generator, n: int, n_subjects: int = 20) -> np.ndarray:
    """T of subjects who share a part of each model's luck."""
    return np.linspace(1, 5, n_subjects) + 0.5 * rng.normal(size=(n, 1)) + rng.normal(size=(n, n_subjects))


def twin(candidate: np.ndarray, references: np.ndarray, alpha: float) -> tuple[int, float, float]:
    """How many are named, the largest t, and the smallest adjusted p, by the step-up procedure's own words."""
    n, n_subjects = references.shape
    ts, ps = [], []
    for i in range(n_subjects):
        values = references[:, i].tolist()
        mean = sum(values) / n
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
        ts.append((candidate[i] - mean) / (spread * math.sqrt(1 + 1 / n)))
        ps.append(float(stats.t(n - 1).sf(ts[-1])))
    ordered = sorted(ps)
    named = 0
    for rank, p in enumerate(ordered, 1):
        if p <= rank / n_subjects * alpha:
            named = rank
    return named, max(ts), min(p * n_subjects / rank for rank, p in enumerate(ordered, 1))


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_the_loops_say(seed: int) -> None:
    rng = np.random.default_rng(seed)
    references, candidate = bank(rng, 8), bank(rng, 1)[0]
    candidate[: seed * 3] += 5.0
    found = exposure(candidate, references)
    named, largest, smallest = twin(candidate, references, 0.05)
    assert found.n_more_exposed == named
    assert found.largest_t == pytest.approx(largest)
    assert found.smallest_adjusted_p == pytest.approx(smallest)
    assert (found.smallest_adjusted_p <= 0.05) is (named > 0)
    assert (found.n_subjects, found.alpha) == (20, 0.05)


def test_a_retrained_model_exposes_somebody_with_probability_at_most_alpha() -> None:
    rng, n = np.random.default_rng(0), 2000
    rate = np.mean([exposure(bank(rng, 1)[0], bank(rng, 12)).n_more_exposed > 0 for _ in range(n)])
    assert 0.01 < rate <= stats.binom(n, 0.05).ppf(0.9995) / n  # positively dependent: somewhat below α


def test_of_those_named_most_are_more_exposed() -> None:
    rng = np.random.default_rng(1)
    wrong, named = [], 0
    for _ in range(300):
        candidate = bank(rng, 1)[0]
        candidate[:5] += 6.0
        references = bank(rng, 16)
        found = exposure(candidate, references)
        quiet = exposure(candidate - np.where(np.arange(20) < 5, 6.0, 0.0), references)
        named += found.n_more_exposed
        wrong.append(max(0, found.n_more_exposed - 5) / max(found.n_more_exposed, 1))
        assert quiet.mean_t < found.mean_t
    assert named > 300 * 4
    assert np.mean(wrong) < 0.05


def test_runs_are_judged_one_by_one() -> None:
    rng = np.random.default_rng(2)
    references, runs = bank(rng, 24), bank(rng, 6)
    runs[:3, 7] += 20.0
    found = exposed_by_runs(runs, references)
    each = [exposure(run, references) for run in runs]
    assert found.n_more_exposed == tuple(one.n_more_exposed for one in each)
    assert found.share >= 0.5
    assert found.largest_t == max(one.largest_t for one in each) > 5
    assert (found.n_subjects, found.n_runs) == (20, 6)


def test_whoever_all_references_answer_alike_is_left_out() -> None:
    rng = np.random.default_rng(3)
    references, candidate = bank(rng, 8), bank(rng, 1)[0]
    references[:, 4] = 2.0
    assert exposure(candidate, references).n_subjects == 19
    references[:] = references[0]
    found = exposure(candidate, references)
    assert (found.n_subjects, found.n_more_exposed, found.smallest_adjusted_p) == (0, 0, 1.0)
    assert math.isnan(found.largest_t)
    with pytest.raises(BankError, match="references that differ"):
        exposed_by_runs(candidate[None], references)


def test_what_cannot_be_judged_is_refused() -> None:
    rng = np.random.default_rng(4)
    references, candidate = bank(rng, 8), bank(rng, 1)[0]
    with pytest.raises(BankError, match="at least 2 models"):
        exposure(candidate, references[:1])
    with pytest.raises(BankError, match="candidate of shape"):
        exposure(candidate[:5], references)
    with pytest.raises(NotANumberError):
        exposure(np.full(20, np.nan), references)
    with pytest.raises(OptionError, match="alpha"):
        exposure(candidate, references, alpha=0.0)
