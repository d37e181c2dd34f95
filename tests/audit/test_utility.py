import numpy as np
import pytest
from scipy import special

from audit.errors import BankError, OptionError
from audit.utility import accuracy, expected_calibration_error, forget_accuracy, one_model, utility


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


def test_accuracy_of_one_model_has_an_exact_interval():
    result = accuracy(45, 50)
    assert result.value == 0.9
    assert (result.low, result.high) == (pytest.approx(0.7819, abs=1e-4), pytest.approx(0.9667, abs=1e-4))


def test_calibration_error_against_a_loop():
    rng = np.random.default_rng(2)
    logits, labels = rng.normal(0, 2, (300, 4)), rng.integers(0, 4, 300)
    p = special.softmax(logits, axis=1)
    twin = 0.0
    for low in np.arange(15) / 15:
        inside = [(q.max(), q.argmax() == y) for q, y in zip(p, labels, strict=True) if low <= q.max() < low + 1 / 15]
        if inside:
            twin += abs(sum(correct - confidence for confidence, correct in inside)) / 300
    assert expected_calibration_error(logits, labels) == pytest.approx(twin)


def test_a_calibrated_model_has_little_error():
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 1.5, (40_000, 3))
    p = special.softmax(logits, axis=1)
    labels = (rng.random(len(p))[:, None] > p.cumsum(axis=1)).sum(axis=1)
    assert expected_calibration_error(logits, labels) < 0.015
    assert expected_calibration_error(logits * 4, labels) > 0.15


def test_what_is_no_accuracy_is_refused():
    with pytest.raises(BankError, match=r"\[0, 1\]"):
        utility([0.9, 1.1], None, 0.9, 0.9, seed=0)
    with pytest.raises(BankError, match=r"\[0, 1\]"):
        utility([0.9, 1.0], None, np.nan, 0.9, seed=0)
    with pytest.raises(BankError, match="labels"):
        expected_calibration_error(np.zeros((2, 3)), [0])
    with pytest.raises(OptionError, match="n_bins"):
        expected_calibration_error(np.zeros((2, 3)), [0, 1], n_bins=0)
