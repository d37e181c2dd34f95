import numpy as np
import pytest
from scipy import stats

from audit.errors import BankError, OptionError
from audit.statistics.intervals import Interval, as_accuracies, clopper_pearson, percentiles, resampled_means


def test_an_interval_contains_what_lies_in_it():
    assert 0.5 in Interval(0.5, 0.4, 0.6)
    assert 0.7 not in Interval(0.5, 0.4, 0.6)
    assert 0.4 in Interval(0.5, 0.4, 0.6)  # its ends are of it
    assert 0.6 in Interval(0.5, 0.4, 0.6)
    assert 0.5 not in Interval(0.5, np.nan, np.nan)


def test_percentiles_leave_out_what_is_undetermined():
    replicates = np.append(np.arange(101.0), np.nan)
    interval = percentiles(50.0, replicates, confidence=0.9)
    assert (interval.value, interval.low, interval.high) == pytest.approx((50.0, 5.0, 95.0))
    assert interval.confidence == 0.9
    nothing = percentiles(1.0, [np.nan], confidence=0.9)
    assert (nothing.value, nothing.confidence) == (1.0, 0.9)
    assert np.isnan([nothing.low, nothing.high]).all()
    with pytest.raises(OptionError, match=r"confidence=1\.0 in \[0\.5, 0\.9999\]"):
        percentiles(1.0, [1.0], confidence=1.0)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 20), (19, 20), (20, 20), (1, 1), (0, 1)])
def test_clopper_pearson_is_scipys(k, n):
    low, high = clopper_pearson(k, n, alpha=0.05)
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert (low, high) == (pytest.approx(expected.low), pytest.approx(expected.high))


def test_counts_out_of_range_are_refused():
    with pytest.raises(OptionError, match=r"\[0, 5\]"):
        clopper_pearson(6, 5, alpha=0.05)
    with pytest.raises(OptionError, match="got -1 to 2"):
        clopper_pearson([2, -1], 5, alpha=0.05)
    with pytest.raises(OptionError, match="at least one trial"):
        clopper_pearson(0, 0, alpha=0.05)
    with pytest.raises(OptionError, match=r"alpha=1\.5"):
        clopper_pearson(1, 5, alpha=1.5)


def test_resampled_means_have_the_spread_of_a_mean():
    values = np.random.default_rng(0).normal(size=200)
    means = resampled_means(values, draws=4000, rng=np.random.default_rng(1))
    assert means.std() == pytest.approx(values.std() / np.sqrt(200), rel=0.05)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)


def test_accuracies_are_shares():
    assert as_accuracies("accuracy", [0, 1]).dtype == np.float64
    with pytest.raises(BankError, match="for model 1"):
        as_accuracies("accuracy", [0.5, 1.001])  # no percentages, however small
    with pytest.raises(BankError, match="for model 0"):
        as_accuracies("accuracy", [-0.001, 0.5])
    for wrong in ([], [[0.5]], 0.5):
        with pytest.raises(BankError, match=r"accuracy of shape \(n_models >= 1,\)"):
            as_accuracies("accuracy", wrong)
    with pytest.raises(BankError, match=r"\(3,\)"):
        as_accuracies("accuracy", [0.5], 3)
