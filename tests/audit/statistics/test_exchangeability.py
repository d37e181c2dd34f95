"""The deployed model's p-value: against a loop twin, and its false positives over many exact retrains."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from audit.errors import BankError, OptionError
from audit.statistics.exchangeability import exchangeability, leave_one_out, models_needed, rejected_share

SMALL = hnp.arrays(np.float64, st.tuples(st.integers(3, 7), st.integers(1, 4)), elements=st.integers(-2, 2).map(float))


def p_twin(candidate: np.ndarray, bank: np.ndarray) -> float:
    """Every model in turn: for each example the share of others below it, ties half; then the distance from ½."""
    rows = [candidate, *bank]
    distances = []
    for i, row in enumerate(rows):
        others = [other for j, other in enumerate(rows) if j != i]
        shares = [
            sum((other[k] < row[k]) + 0.5 * (other[k] == row[k]) for other in others) / len(others)
            for k in range(len(row))
        ]
        distances.append(abs(sum(shares) / len(shares) - 0.5))
    return sum(distance >= distances[0] - 1e-9 for distance in distances) / len(rows)


@settings(max_examples=150)
@given(SMALL)
def test_it_is_the_share_of_models_at_least_as_unusual(rows):
    result = exchangeability(rows[0], rows[1:])
    assert result.p_value == pytest.approx(p_twin(rows[0], rows[1:]))


def test_leave_one_out_is_each_reference_against_the_others(draw):
    bank = draw(np.random.default_rng(0), 12, 5)
    one_by_one = [exchangeability(bank[i], np.delete(bank, i, axis=0)).p_value for i in range(12)]
    assert leave_one_out(bank) == pytest.approx(one_by_one)


@pytest.mark.parametrize(("n_models", "dependence"), [(64, 0.0), (64, 0.8), (128, 0.5)])
def test_false_positives_over_exact_retrains_are_nominal(draw, n_models, dependence):
    # 1,500 retrains, each against a bank of its own, ten dependent examples. The nominal level is the largest multiple
    # of 1/(N + 1) below 5 %; the count lies outside the central 99.9 % of its binomial for one seed in a thousand.
    rng = np.random.default_rng(n_models)
    n, rejected = 1500, 0
    for _ in range(n):
        rows = draw(rng, n_models + 1, 10, dependence=dependence)
        rejected += exchangeability(rows[0], rows[1:]).p_value < 0.05
    level = (np.ceil(0.05 * (n_models + 1)) - 1) / (n_models + 1)
    low, high = stats.binom.interval(0.999, n, level)
    assert low <= rejected <= high
    assert abs(rejected / n - 0.05) <= 0.02


def test_power_against_a_candidate_that_forgot_nothing(draw):
    rng = np.random.default_rng(1)
    bank = draw(rng, 64, 10)
    power = [rejected_share(draw(rng, 200, 10, shift=shift), bank, alpha=0.05) for shift in (0.0, 1.0, 2.0, 4.0)]
    assert power[0] < 0.12  # one bank: its own luck moves the rate by a few points
    assert power[0] < power[1] < power[2] < power[3]
    assert power[3] > 0.95


def test_a_p_value_at_the_level_is_not_below_it(draw):
    """The verdict passes p = α (`audit.checks`); were this share to count it as rejected, power would be overstated."""
    bank = draw(np.random.default_rng(4), 39, 3)
    extreme = bank.max(axis=0, keepdims=True) + 1  # p = 1/40
    assert rejected_share(extreme, bank, alpha=1 / 40) == 0.0
    assert rejected_share(extreme, bank, alpha=1 / 40 + 1e-9) == 1.0
    with pytest.raises(OptionError, match=r"alpha=1\.5"):
        rejected_share(extreme, bank, alpha=1.5)
    with pytest.raises(BankError, match="candidates"):
        rejected_share(extreme[0], bank, alpha=0.05)


def test_leaving_one_out_leaves_at_least_two(draw):
    bank = draw(np.random.default_rng(5), 3, 2)
    assert leave_one_out(bank).shape == (3,)
    with pytest.raises(BankError, match="at least 3 models in retrained"):
        leave_one_out(bank[:2])


def test_the_mean_rank_tells_the_direction(draw):
    bank = draw(np.random.default_rng(2), 40, 6)
    assert exchangeability(bank.max(axis=0) + 1, bank).mean_rank == 1.0
    assert exchangeability(bank.min(axis=0) - 1, bank).mean_rank == 0.0
    result = exchangeability(bank.max(axis=0) + 1, bank)
    assert result.p_value == pytest.approx(1 / 41)
    assert result.reference_mean_ranks.shape == (40,)


def test_a_copy_of_a_reference_is_not_unusual():
    bank = np.zeros((40, 3))
    assert exchangeability(bank[0], bank).p_value == 1.0


def test_infinite_margins_have_ranks(draw):
    bank = draw(np.random.default_rng(3), 40, 3)
    assert exchangeability(np.full(3, np.inf), bank).mean_rank == 1.0


def test_models_needed_for_a_two_sided_level():
    assert [models_needed(alpha) for alpha in (0.05, 0.1, 0.01, 0.3, 1.0, 0.0)] == [39, 19, 199, 6, 1, 0]
    with pytest.raises(OptionError, match=r"alpha=-0\.1"):
        models_needed(-0.1)
    with pytest.raises(OptionError, match=r"alpha=1\.5"):
        models_needed(1.5)


def test_other_shapes_are_refused():
    with pytest.raises(BankError, match="candidate"):
        exchangeability(np.zeros(2), np.zeros((40, 3)))
