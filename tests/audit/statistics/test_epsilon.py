"""ε against loop twins: one rule after another, as the definition reads."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from audit import epsilons
from audit.errors import BankError, NotANumberError, OptionError
from audit.statistics import epsilon

DELTA = 1e-5
PLACE = st.one_of(
    st.integers(-3, 3).map(float),
    st.integers(-250, 250).map(lambda k: k / 100),
    st.floats(-3, 3, allow_subnormal=False),
    st.sampled_from([np.inf, -np.inf, 104.0, -500.0]),
)
BANKS = st.integers(2, 9).flatmap(
    lambda n: st.tuples(st.lists(PLACE, min_size=n, max_size=n), st.lists(PLACE, min_size=n, max_size=n))
)


def rule_epsilon(fn: int, fp: int, n_p: int, n_n: int) -> float | None:
    """ε of one rule; None if the rule is dropped."""
    if fn == 0 and fp == 0:
        return math.inf
    if fn == 0 or fp == 0:
        return None
    terms = []
    for a, b in ((fp / n_n, fn / n_p), (fn / n_p, fp / n_n)):
        if 1 - DELTA - a > 0:
            terms.append(math.log(1 - DELTA - a) - math.log(b))
    return max(*terms, 0.0) if len(terms) == 2 else max(terms[0], 0.0) if terms else None


def best(rules: set[tuple[int, int]], n_p: int, n_n: int) -> float | None:
    values = [value for fn, fp in rules if (value := rule_epsilon(fn, fp, n_p, n_n)) is not None]
    return max(values, default=None)


def official_twin(u: np.ndarray, r: np.ndarray) -> float:
    """The official procedure for one example, threshold after threshold."""
    u, r = (np.clip(bank, -epsilon.SATURATION, epsilon.SATURATION) for bank in (u, r))
    pos, neg = (r, u) if np.median(r) > np.median(u) else (u, r)
    range_pos, range_neg = pos.max() - pos.min(), neg.max() - neg.min()
    smaller, larger = min(range_pos, range_neg), max(range_pos, range_neg)
    if larger > 0 and smaller / larger < 0.01:
        return 50.0
    low, high = min(pos.min(), neg.min()), max(pos.max(), neg.max())
    thresholds = np.linspace(low, high, math.ceil((high - low) * 100))[:, None]
    single = set(zip((pos < thresholds).sum(axis=1).tolist(), (neg >= thresholds).sum(axis=1).tolist(), strict=True))
    if range_pos >= range_neg:
        inside, outside = neg, pos
    else:
        inside, outside = pos, neg
    double = set()
    first, last = inside.min() + smaller - 2.0, inside.max() + 2.0
    for right in np.linspace(first, last, math.ceil((last - first) * 100)):
        lefts = np.linspace(right - smaller - 2.0, right - smaller + 2.0, 400)
        taken = ((lefts[:, None] <= inside) & (inside <= right)).sum(axis=1)
        alarms = ((lefts[:, None] <= outside) & (outside <= right)).sum(axis=1)
        double |= set(zip((len(inside) - taken).tolist(), alarms.tolist(), strict=True))
    found = [best(single, len(pos), len(neg)), best(double, len(inside), len(outside))]
    known = [value for value in found if value is not None]
    return min(max(known), 50.0) if known else math.nan


def exact_twin(u: np.ndarray, r: np.ndarray) -> float:
    """Every interval between order statistics, with either bank inside."""
    ranges = sorted(np.ptp(np.clip(bank, -epsilon.SATURATION, epsilon.SATURATION)) for bank in (u, r))
    if ranges[1] > 0 and ranges[0] / ranges[1] < 0.01:
        return 50.0
    known = []
    places = sorted(set(u) | set(r))
    for i, left in enumerate(places):
        for right in places[i:]:
            for inside, outside in ((u, r), (r, u)):
                fn = sum(not left <= f <= right for f in inside)
                fp = sum(left <= f <= right for f in outside)
                value = rule_epsilon(fn, fp, len(inside), len(outside))
                known += [] if value is None else [value]
    return min(max(known), 50.0) if known else math.nan


@settings(max_examples=80, deadline=None)
@given(BANKS)
@example(([0.0, 0.0], [0.0, 0.0]))
@example(([1.0, 1.0, 1.0], [0.0, 0.0, 0.0]))
@example(([np.inf, np.inf, -np.inf], [0.0, 1.0, np.inf]))
@example(([0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]))
def test_official_is_the_grid_walked_rule_by_rule(banks):
    u, r = map(np.array, banks)
    assert epsilons(u[:, None], r[:, None])[0] == pytest.approx(official_twin(u, r), abs=1e-12, nan_ok=True)


@settings(max_examples=80, deadline=None)
@given(BANKS)
def test_exact_is_every_interval_tried_one_by_one(banks):
    u, r = map(np.array, banks)
    found = epsilons(u[:, None], r[:, None], mode="exact")[0]
    assert found == pytest.approx(exact_twin(u, r), abs=1e-12, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(BANKS)
def test_exact_is_never_below_official(banks):
    u, r = (np.array(bank)[:, None] for bank in banks)
    official, exact = epsilons(u, r)[0], epsilons(u, r, mode="exact")[0]
    assert math.isnan(official) or exact >= official


@pytest.mark.parametrize("n_models", [16, 61, 128])
@pytest.mark.parametrize("decimals", [None, 2, 0])
def test_official_on_banks_like_real_ones(n_models, decimals):
    rng = np.random.default_rng(n_models)
    scale = np.array([0.02, 0.3, 1.0, 4.0])
    u, r = 1 + scale * rng.normal(0.4, 1.0, (n_models, 4)), 1 + scale * rng.normal(0.0, 1.3, (n_models, 4))
    if decimals is not None:
        u, r = u.round(decimals), r.round(decimals)
    np.testing.assert_array_equal(epsilons(u, r), [official_twin(u[:, i], r[:, i]) for i in range(4)])


def test_the_shortcut_of_the_double_threshold_is_the_whole_grid():
    rng = np.random.default_rng(7)
    for trial in range(120):
        n, scale = int(rng.integers(3, 80)), rng.choice([0.05, 0.5, 2.0, 20.0])
        u, r = rng.normal(0, scale, (n, 1)), rng.normal(0.3 * scale, 1.2 * scale, (n, 1))
        u, r = (bank.round(2) if trial % 3 == 0 else bank for bank in (u, r))
        pooled, below_u = epsilon.merged(u, r)
        below_r = np.arange(2 * n + 1) - below_u[0]
        span, table = (float(u.min()), float(u.max())), epsilon.rule_table(n, n, DELTA)
        width = span[1] - span[0]
        first, last = span[0] + width - 2.0, span[1] + 2.0
        rights = np.linspace(first, last, math.ceil((last - first) * 100))
        whole = epsilon._walk(pooled[0], below_u[0], below_r, table, rights=rights, width=width)
        assert epsilon._double(pooled[0], below_u[0], below_r, table, span) == whole


def test_perfect_separation_and_the_spike_give_the_cap():
    rng = np.random.default_rng(0)
    bank = rng.normal(0, 1, (20, 1))
    for mode in ("official", "exact"):
        assert epsilons(bank + 30, bank, mode=mode)[0] == 50.0  # FPR = FNR = 0
        assert epsilons(np.full((20, 1), 0.1), bank, mode=mode)[0] == 50.0  # a range of nothing
        assert epsilons(bank * 0.009, bank, mode=mode)[0] == 50.0


def test_equal_constants_are_undetermined_and_not_zero():
    for mode in ("official", "exact"):
        assert np.isnan(epsilons(np.ones((8, 1)), np.ones((8, 1)), mode=mode)[0])


def test_margins_beyond_the_official_saturation_count_as_there():
    u, r = np.array([[104.0], [1.0], [2.0]]), np.array([[0.0], [1.5], [3.0]])
    far = u.copy()
    far[0] = np.inf
    assert epsilons(u, r) == pytest.approx(epsilons(far, r))


def test_banks_of_unequal_size():
    rng = np.random.default_rng(3)
    u, r = rng.normal(0.5, 1, (17, 3)), rng.normal(0, 1, (40, 3))
    assert epsilons(u, r).tolist() == [official_twin(u[:, i], r[:, i]) for i in range(3)]


def test_the_largest_finite_epsilon_is_about_log_n():
    table = epsilon.rule_table(64, 64, DELTA)
    finite = table[np.isfinite(table)]
    assert finite.max() == pytest.approx(math.log(63), abs=1e-3)


def test_a_perfect_unlearner_has_a_median_epsilon_near_1_6():
    rng = np.random.default_rng(0)  # one fixed draw, no test of chance
    values = epsilons(rng.normal(0, 1, (64, 200)), rng.normal(0, 1, (64, 200)))
    assert 1.4 < np.median(values) < 1.8


def test_what_cannot_be_judged_is_refused():
    good = np.zeros((3, 2))
    with pytest.raises(NotANumberError, match="model 1 on example 0 in retrained"):
        epsilons(good, [[0, 0], [np.nan, 0], [0, 0]])
    with pytest.raises(BankError, match="at least 2 models"):
        epsilons(good[:1], good)
    with pytest.raises(OptionError, match="'official' or 'exact'"):
        epsilons(good, good, mode="fast")
    with pytest.raises(OptionError, match=r"delta=1\.0"):
        epsilons(good, good, delta=1.0)
