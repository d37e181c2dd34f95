"""Lower bounds: closed forms, and how often they claim too much. Each test says what chance it leaves to fail."""

import math

import numpy as np
import pytest
from scipy import stats

from audit.errors import BankError, OptionError
from audit.statistics.bounds import epsilon_bound, limits, lower_bounds, threshold_band


def test_the_limits_at_usual_numbers_of_models():
    found = [limits(n) for n in (64, 128, 512)]
    assert [x.largest_epsilon for x in found] == pytest.approx([4.14, 4.84, 6.24], abs=0.005)
    assert [x.largest_bound for x in found] == pytest.approx([2.82, 3.53, 4.93], abs=0.005)
    assert [x.largest_split_bound for x in found] == pytest.approx([2.10, 2.82, 4.23], abs=0.005)
    assert [x.smallest_delta for x in found] == pytest.approx([0.125, 0.070, 0.021], abs=0.0006)
    assert found[0].smallest_p == pytest.approx(1 / 65)


def test_clopper_pearson_by_hand():
    upper = [stats.binomtest(k, 50).proportion_ci(0.95, method="exact").high for k in (3, 10)]
    expected = max(math.log((1 - 1e-5 - upper[0]) / upper[1]), math.log((1 - 1e-5 - upper[1]) / upper[0]))
    assert epsilon_bound(10, 3, 50, 50) == pytest.approx(expected)
    assert epsilon_bound(25, 25, 50, 50) == 0.0


def test_bounds_fall_with_errors_and_with_confidence():
    by_errors = [epsilon_bound(k, k, 64, 64) for k in range(0, 20, 4)]
    assert by_errors == sorted(by_errors, reverse=True)
    assert epsilon_bound(2, 2, 64, 64, alpha=0.01) < epsilon_bound(2, 2, 64, 64)


def test_a_rule_fixed_beforehand_is_rarely_credited_with_too_much():
    # True rates .2 and .1 give ε = 2.08. Over all outcomes the share of bounds above it is computed, not sampled;
    # Clopper–Pearson may not exceed α.
    n, fnr, fpr = 40, 0.2, 0.1
    truth = math.log((1 - 1e-5 - fnr) / fpr)
    weights_p, weights_n = stats.binom.pmf(np.arange(n + 1), n, fnr), stats.binom.pmf(np.arange(n + 1), n, fpr)
    wrong = sum(
        weights_p[i] * weights_n[j]
        for i in range(n + 1)
        for j in range(n + 1)
        if weights_p[i] * weights_n[j] > 1e-7 and epsilon_bound(i, j, n, n) > truth
    )
    assert wrong <= 0.05


def test_equal_banks_give_no_evidence():
    # 400 independent examples without any difference: more than 37 bounds above 0 has probability 1e-4 at level 5 %.
    rng = np.random.default_rng(1)
    result = lower_bounds(rng.normal(size=(64, 400)), rng.normal(size=(64, 400)), seed=0)
    assert (result.bounds > 0).sum() <= 37
    assert result.simultaneous == 0.0


def test_a_real_difference_is_found_and_never_exceeds_the_limit(draw):
    rng = np.random.default_rng(2)
    r = draw(rng, 128, 6)
    far = lower_bounds(draw(rng, 128, 6, shift=20.0), r, seed=0)
    assert far.bounds == pytest.approx(np.full(6, limits(128).largest_split_bound))
    assert far.simultaneous < far.largest_possible
    near = lower_bounds(draw(rng, 128, 6, shift=2.0), r, seed=0)
    assert (near.bounds > 0.3).all()
    peaked = lower_bounds(draw(rng, 128, 6, spread=0.1), r, seed=0)  # seen by an interval, by no threshold
    assert (peaked.bounds > 0.5).all()
    assert (near.n_models_choosing, near.n_models_counting) == (64, 64)


def test_the_rule_is_chosen_without_the_models_that_are_counted():
    # Margins that differ on the choosing half only must leave no bound: with seed 0 the halves are known.
    rng = np.random.default_rng(0)
    order_u = rng.permutation(64)
    noise = np.random.default_rng(1)
    u, r = noise.normal(size=(64, 1)), noise.normal(size=(64, 1))
    u[order_u[:32]] += 50
    assert lower_bounds(u, r, seed=0).bounds[0] == 0.0


def test_the_band_holds_the_true_delta():
    # δ(ε) of N(1, 1) against N(0, 1) over thresholds is known; 200 examples, band at 95 % for all ε at once: more than
    # 21 failures has probability 4e-4 even if the band were exact.
    rng = np.random.default_rng(3)
    band = threshold_band(rng.normal(1, 1, (64, 200)), rng.normal(0, 1, (64, 200)))
    places = np.linspace(-8, 9, 4000)
    p, q = stats.norm.cdf(places, 1, 1), stats.norm.cdf(places, 0, 1)
    pairs = [(p, q), (q, p), (1 - p, 1 - q), (1 - q, 1 - p)]
    truth = np.array([max(float((a - np.exp(e) * b).max()) for a, b in pairs) for e in band.epsilons])[:, None]
    failures = ((truth < band.low) | (truth > band.high + 1e-9)).any(axis=0).sum()
    assert failures <= 21
    assert (band.low <= band.high).all()


def test_the_band_reaches_its_floor_and_no_lower():
    bank = np.random.default_rng(4).normal(size=(64, 1))
    band = threshold_band(bank, bank, epsilons=[0.0, 20.0])
    assert band.low.max() == 0.0
    assert band.high[1, 0] == pytest.approx(limits(64).smallest_delta, abs=1e-6)


def test_what_cannot_be_bounded_is_refused():
    bank = np.zeros((3, 1))
    with pytest.raises(BankError, match="at least 4 models"):
        lower_bounds(bank, bank, seed=0)
    with pytest.raises(OptionError, match="false_negatives=6"):
        epsilon_bound(6, 0, 5, 5)
    with pytest.raises(OptionError, match="epsilons"):
        threshold_band(np.zeros((4, 1)), np.zeros((4, 1)), epsilons=[-1.0])
