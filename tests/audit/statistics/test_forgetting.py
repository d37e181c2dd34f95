"""F, the score and the ratio to the null. Statistical tests fix their seeds; what they allow is said beside them."""

import math

import numpy as np
import pytest

from audit import competition_score, forgetting_quality, forgetting_ratio
from audit.errors import BankError, OptionError
from audit.statistics.forgetting import mean_ratio, n_buckets, points, quick_ratio


def points_twin(eps: float, n_models: int) -> float:
    """The official buckets, one after another."""
    gain, start = 1.0, 0.0
    while start + 0.5 <= math.ceil(math.log(n_models - 1)):
        if eps < start + 0.5:
            return gain
        gain, start = gain / 2, start + 0.5
    return 0.0


@pytest.mark.parametrize("n_models", [2, 3, 4, 16, 64, 128, 512])
def test_points_are_the_official_buckets(n_models):
    eps = np.concatenate([np.arange(0, 9, 0.25), np.arange(0.5, 9, 0.5) - 1e-12, [50.0]])
    assert points(eps, n_models).tolist() == [points_twin(e, n_models) for e in eps]


def test_the_largest_bucket_follows_the_number_of_models():
    assert [n_buckets(n) for n in (2, 3, 64, 128, 512)] == [0, 2, 10, 10, 14]


def test_forgetting_quality_is_the_mean_of_the_points(draw):
    rng = np.random.default_rng(0)
    result = forgetting_quality(draw(rng, 32, 5), draw(rng, 32, 5))
    assert result.value == pytest.approx(np.mean([points_twin(e, 32) for e in result.epsilons]))
    assert result.median_epsilon == np.median(result.epsilons)
    assert (result.n_models, result.n_undetermined) == (32, 0)


def test_undetermined_examples_are_counted_and_left_out(draw):
    rng = np.random.default_rng(0)
    u, r = draw(rng, 32, 3), draw(rng, 32, 3)
    u[:, 1] = r[:, 1] = 1.0
    whole, rest = forgetting_quality(u, r), forgetting_quality(u[:, [0, 2]], r[:, [0, 2]])
    assert whole.n_undetermined == 1
    assert math.isnan(whole.points[1])
    assert whole.value == rest.value
    nothing = forgetting_quality(np.ones((8, 2)), np.ones((8, 2)))
    assert math.isnan(nothing.value)
    assert nothing.n_undetermined == 2


def test_the_score_multiplies_ratios_without_a_cap(draw):
    rng = np.random.default_rng(1)
    u, r = draw(rng, 32, 4), draw(rng, 32, 4)
    score = competition_score(
        u,
        r,
        retain_accuracy_unlearned=[0.9, 1.0],
        retain_accuracy_retrained=[1.0, 1.0],
        test_accuracy_unlearned=[0.9],
        test_accuracy_retrained=[0.8, 0.82],
    )
    assert score.retain_ratio == pytest.approx(0.95)
    assert score.test_ratio == pytest.approx(0.9 / 0.81)
    assert score.value == pytest.approx(score.forgetting.value * 0.95 * 0.9 / 0.81)


def test_accuracies_that_are_none_are_refused():
    assert math.isnan(mean_ratio([0.5], [0.0]))
    with pytest.raises(BankError, match=r"\[0, 1\]"):
        mean_ratio([98.0], [0.5])
    with pytest.raises(BankError, match=r"\[0, 1\]"):
        mean_ratio([np.nan], [0.5])


def test_the_ratio_of_a_perfect_unlearner_is_centred_on_one(draw):
    # Standard error of the mean of 24 ratios: 0.08/√24 = 0.016; ±0.06 fails by chance in 2 of 10,000 draws of the seed.
    ratios = []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        ratio = forgetting_ratio(draw(rng, 64, 8), draw(rng, 64, 8), seed=seed, n_pairs=20)
        ratios.append(ratio.ratio)
    assert np.mean([ratio.value for ratio in ratios]) == pytest.approx(1.0, abs=0.06)
    # of 24 intervals at 95 %, fewer than 19 containing 1 has probability 0.0002
    assert sum(1.0 in ratio for ratio in ratios) >= 19


def test_the_ratio_falls_when_less_is_forgotten(draw):
    rng = np.random.default_rng(5)
    r = draw(rng, 64, 8)
    values = [
        forgetting_ratio(draw(rng, 64, 8, shift=shift), r, seed=0, n_pairs=20).ratio for shift in (0.0, 0.7, 1.5, 6.0)
    ]
    assert values[0].value > values[1].high
    assert values[1].value > values[2].value > values[3].value
    assert 1.0 not in values[2]
    narrow = forgetting_ratio(draw(rng, 64, 8, spread=0.4), r, seed=0, n_pairs=20).ratio
    assert narrow.high < 0.6  # a peaked distribution is no forgetting either


def test_do_nothing_from_one_original_gets_nothing(draw):
    rng = np.random.default_rng(6)
    u = np.tile(draw(rng, 1, 8, shift=2.0), (64, 1))  # every run returns the same original
    ratio = forgetting_ratio(u, draw(rng, 64, 8), seed=0, n_pairs=20).ratio
    assert (ratio.value, ratio.low, ratio.high) == (0.0, 0.0, 0.0)


def test_the_ratio_is_of_halves_and_reproducible(draw):
    rng = np.random.default_rng(7)
    u, r = draw(rng, 33, 4), draw(rng, 40, 4)
    first, again, other = (forgetting_ratio(u, r, seed=seed, n_pairs=10) for seed in (1, 1, 2))
    assert first.n_models_a_side == 16
    assert first.ratio == again.ratio
    assert first.ratio != other.ratio
    assert first.ratio.value == pytest.approx(first.forgetting_draws.mean() / first.null_draws.mean())
    assert first.forgetting_draws.shape == (20,)


def test_the_null_of_the_score_uses_the_accuracies(draw):
    rng = np.random.default_rng(8)
    r = draw(rng, 32, 4)
    plain = forgetting_ratio(r, r, seed=0, n_pairs=10)
    assert plain.null_score == plain.null
    ratio = forgetting_ratio(
        r, r, seed=0, n_pairs=10, retain_accuracy=rng.uniform(0.8, 1, 32), test_accuracy=rng.uniform(0.8, 1, 32)
    )
    assert ratio.null_score.value == pytest.approx(ratio.null.value, rel=0.05)
    assert ratio.null_score != ratio.null


def test_what_is_too_small_is_undetermined_or_refused(draw):
    ones = np.ones((8, 2))
    assert math.isnan(forgetting_ratio(ones, ones, seed=0, n_pairs=10).ratio.value)
    with pytest.raises(BankError, match="at least 4 models"):
        forgetting_ratio(ones[:3], ones, seed=0)
    with pytest.raises(OptionError, match="n_pairs"):
        forgetting_ratio(ones, ones, seed=0, n_pairs=1)


def test_the_quick_ratio_is_all_unlearned_models_against_as_many_retrained_ones(draw):
    rng = np.random.default_rng(9)
    u, r = draw(rng, 16, 4, shift=0.5), draw(rng, 32, 4)  # just twice as many: every draw cuts the bank in two
    rng, found, null = np.random.default_rng(3), [], []
    for _ in range(5):
        order = rng.permutation(32)
        found.append(forgetting_quality(u, r[order[:16]]).value)
        null.append(forgetting_quality(r[order[16:]], r[order[:16]]).value)
    assert quick_ratio(u, r, seed=3, n_draws=5) == pytest.approx(np.mean(found) / np.mean(null))
    assert quick_ratio(u, r, seed=3) == quick_ratio(u, r, seed=3, n_draws=12)


def test_the_quick_ratio_tells_forgetting_from_none(draw):
    rng = np.random.default_rng(10)
    r = draw(rng, 64, 8)
    ratios = [quick_ratio(draw(rng, 16, 8, shift=shift), r, seed=0) for shift in (0.0, 1.5, 6.0)]
    assert ratios[0] == pytest.approx(1.0, abs=0.3)
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[2] < 0.05


def test_the_quick_ratio_without_a_null_is_no_number():
    """A search must not take 0/0 for a good score, nor an example that nothing is known of."""
    assert math.isnan(quick_ratio(np.ones((4, 2)), np.ones((8, 2)), seed=0))
    with pytest.raises(BankError, match="at least 8 retrained models, got 7"):
        quick_ratio(np.ones((4, 2)), np.ones((7, 2)), seed=0)


def test_the_smallest_banks_and_fewest_draws_are_enough(draw):
    rng = np.random.default_rng(11)
    ratio = forgetting_ratio(draw(rng, 4, 2), draw(rng, 5, 2), seed=0, n_pairs=10)
    assert (ratio.n_models_a_side, ratio.n_pairs) == (2, 10)
    with pytest.raises(OptionError, match="n_pairs >= 10, got 9"):
        forgetting_ratio(np.ones((4, 2)), np.ones((4, 2)), seed=0, n_pairs=9)
    with pytest.raises(BankError, match="4 unlearned and 3 retrained"):
        forgetting_ratio(np.ones((4, 2)), np.ones((3, 2)), seed=0)


def test_the_interval_of_the_ratio_is_its_formula(draw):
    """Half the mean squared difference of complementary halves, less the variance among halves: −covariance."""
    rng = np.random.default_rng(12)
    u, r = draw(rng, 32, 4), draw(rng, 32, 4)
    result = forgetting_ratio(u, r, seed=0, n_pairs=40, confidence=0.9)
    f, g = result.forgetting_draws.reshape(40, 2), result.null_draws
    within = ((f[:, 0] - f[:, 1]) ** 2 / 2).mean()  # of a single F over the population
    variance = np.clip(within - f.var() + f.var() / 2 / np.sqrt(40), f.var() / np.sqrt(40), f.var())
    sd = np.sqrt(variance / f.mean() ** 2 + g.var() / g.mean() ** 2 / 40)
    low, high = (f.mean() / g.mean() * np.exp(sign * 1.6448536 * sd) for sign in (-1, 1))
    assert (result.ratio.low, result.ratio.high) == pytest.approx((low, high))
    assert result.ratio.confidence == 0.9


def test_central_figures_are_those_of_the_draws(draw):
    rng = np.random.default_rng(13)
    result = forgetting_ratio(draw(rng, 32, 4, shift=1.0), draw(rng, 32, 4), seed=0, n_pairs=40)
    for interval, draws in ((result.forgetting, result.forgetting_draws), (result.null, result.null_draws)):
        assert interval.value == pytest.approx(draws.mean())
        assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])))
    assert result.median_epsilon.value > result.null_median_epsilon.value  # what was not forgotten is seen


def test_one_model_a_side_has_no_buckets():
    with pytest.raises(BankError, match="at least 2 models a side, got 1"):
        n_buckets(1)
    assert n_buckets(2) == 0
