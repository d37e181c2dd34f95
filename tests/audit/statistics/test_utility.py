import numpy as np
import pytest

from audit.errors import BankError, OptionError
from audit.statistics.utility import forget_accuracy, one_model, utility


def test_ratio_of_means_and_its_interval():
    rng = np.random.default_rng(0)
    retrained, unlearned = rng.normal(0.95, 0.01, 64), rng.normal(0.93, 0.01, 64)
    result = utility(retrained, unlearned, 0.94, 0.97, seed=0)
    assert result.ratio.value == pytest.approx(unlearned.mean() / retrained.mean())
    # delta method: sd of the ratio is about √2 · 0.01/√64 / 0.95
    assert result.ratio.high - result.ratio.low == pytest.approx(3.92 * np.sqrt(2) * 0.01 / 8 / 0.95, rel=0.25)
    assert 0.95 in result.retrained
    assert result.deployed.accuracy == 0.94
    assert result.original.ratio.value == pytest.approx(0.97 / retrained.mean())


def test_the_interval_of_the_ratio_covers():
    # 300 draws at 95 %: fewer than 270 has probability 3e-4.
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(300):
        result = utility(rng.normal(0.9, 0.02, 40), rng.normal(0.81, 0.02, 40), 0.9, 0.9, seed=seed, n_draws=400)
        covered += 0.9 in result.ratio
    assert covered >= 270


def test_exact_retraining_has_no_bank_of_its_own():
    result = utility([0.9, 0.92], None, 0.91, 0.95, seed=0)
    assert result.unlearned is None
    assert result.ratio is None


def test_one_model_among_the_references():
    bank = np.linspace(0.90, 0.99, 10)
    assert one_model(0.5, bank).p_value == pytest.approx(1 / 11)
    assert one_model(0.90, bank).p_value == pytest.approx(2 / 11)
    assert one_model(1.0, bank).p_value == 1.0
    assert one_model(0.945, bank).ratio.value == pytest.approx(1.0)
    assert np.isnan(one_model(0.5, [0.0, 0.0]).ratio.value)


def test_forget_accuracy_counts_positive_margins():
    assert forget_accuracy([[1.0, -1.0], [0.0, 2.0], [3.0, 3.0]]).tolist() == [0.5, 0.5, 1.0]


def test_the_confidence_asked_for_is_that_of_every_interval():
    bank = np.random.default_rng(6).uniform(0.8, 1.0, 50)
    for level in (0.5, 0.95):
        result = utility(bank, bank, 0.9, 0.9, seed=0, confidence=level)
        intervals = [result.retrained, result.unlearned, result.ratio, result.deployed.ratio, result.original.ratio]
        assert [each.confidence for each in intervals] == [level] * 5


def test_the_spread_of_the_bank_is_where_its_models_lie():
    bank = np.linspace(0.5, 1.0, 101)
    spread = one_model(0.75, bank, confidence=0.9).ratio
    assert (spread.low, spread.value, spread.high) == pytest.approx((0.525 / 0.75, 1.0, 0.975 / 0.75))


def test_what_is_no_accuracy_is_refused():
    with pytest.raises(BankError, match=r"\[0, 1\]"):
        utility([0.9, 1.1], None, 0.9, 0.9, seed=0)
    with pytest.raises(BankError, match=r"\[0, 1\]"):
        utility([0.9, 1.0], None, np.nan, 0.9, seed=0)
    with pytest.raises(OptionError, match="n_draws"):
        utility([0.9, 1.0], None, 0.9, 0.9, seed=0, n_draws=1)
