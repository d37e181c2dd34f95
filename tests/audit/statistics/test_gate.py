"""The gate: against loops, closed forms and simulated retrains.

Simulations have fixed seeds. A rate is compared with the central 99.9 % of its binomial, so that one seed in a thousand
would fail a correct gate.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

import audit
from audit.errors import BankError, OptionError
from audit.statistics.exchangeability import exchangeability
from audit.statistics.gate import LOWER_SHARE, RANK_SHARE, UPPER_SHARE, gate
from audit.statistics.spread import TAIL, PooledSpread, pooled_spread, tail_mean

SHAPE = (3, 4)
MARGINS = hnp.arrays(
    np.float64, st.tuples(st.integers(3, 6), st.integers(1, 3), st.integers(1, 4)), elements=st.floats(-5, 5)
)


def bank(rng: np.random.Generator, n_models: int, *, shift: float = 0.0, shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Margins whose luck a model's images and views share in part."""
    common, own = rng.normal(size=(n_models, 1, 1)), rng.normal(size=(n_models, *shape))
    return np.linspace(1.0, 4.0, math.prod(shape)).reshape(shape) + shift + 0.8 * common + 0.6 * own


def one_number(values: np.ndarray) -> np.ndarray:
    """Margins `(…, 1, 1)` of which the statistic is the value itself, for simulations of the test alone."""
    return np.asarray(values)[..., None, None]


# The naive twin


def tail_mean_twin(margins: np.ndarray) -> float:
    medians = sorted(statistics.median(float(view[k]) for view in margins) for k in range(len(margins[0])))
    n_lowest = max(1, -(-len(medians) // 3))
    return sum(medians[:n_lowest]) / n_lowest


def gate_twin(candidate: np.ndarray, references: np.ndarray, alpha: float) -> tuple[float, float, float, bool]:
    """p-values of the three sides and the verdict, by loops."""
    n = len(references)
    others = [tail_mean_twin(reference) for reference in references]
    mean = sum(others) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in others) / (n - 1))
    t = (tail_mean_twin(candidate) - mean) / (spread * math.sqrt(1 + 1 / n))
    rows = [candidate.ravel().tolist(), *(reference.ravel().tolist() for reference in references)]
    ranks = []
    for i, row in enumerate(rows):
        rest = [other for j, other in enumerate(rows) if j != i]
        shares = [sum((o[k] < row[k]) + 0.5 * (o[k] == row[k]) for o in rest) / n for k in range(len(row))]
        ranks.append(sum(shares) / len(shares))
    mean_rank = sum(ranks[1:]) / n
    variance = sum((value - mean_rank) ** 2 for value in ranks[1:]) / (n - 1)
    variance = max(variance, (n + 2) / (12 * n * candidate.size))
    t_rank = (ranks[0] - mean_rank) / math.sqrt(variance * (1 + 1 / n))
    law = stats.t(n - 1)
    p_value, p_over, rank_p = law.sf(t), law.cdf(t), 2 * law.sf(abs(t_rank))
    passed = p_value >= alpha * UPPER_SHARE and p_over >= alpha * LOWER_SHARE and rank_p >= alpha * RANK_SHARE
    return p_value, p_over, rank_p, passed


@settings(max_examples=80, deadline=None)
@given(MARGINS, st.sampled_from([0.05, 0.5]))
def test_it_is_what_loops_say(rows: np.ndarray, alpha: float) -> None:
    values = [tail_mean_twin(row) for row in rows[1:]]
    if max(values) - min(values) < 1e-6:
        return
    found = gate(rows[0], rows[1:], alpha=alpha)
    p_value, p_over, rank_p, passed = gate_twin(rows[0], rows[1:], alpha)
    assert found.p_value == pytest.approx(p_value, rel=1e-6, abs=1e-12)
    assert found.p_over == pytest.approx(p_over, rel=1e-6, abs=1e-12)
    assert found.mean_rank_p == pytest.approx(rank_p, rel=1e-6, abs=1e-12)
    assert found.passed == passed


@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.integers(1, 7)), elements=st.floats(-50, 50)))
def test_the_statistic_is_the_mean_of_the_images_with_the_lowest_medians(margins: np.ndarray) -> None:
    assert tail_mean(margins) == pytest.approx(tail_mean_twin(margins))


@pytest.mark.parametrize(("n", "n_lowest"), [(1, 1), (2, 1), (3, 1), (4, 2), (6, 2), (9, 3), (10, 4), (300, 100)])
def test_a_third_is_rounded_up(n: int, n_lowest: int) -> None:
    assert pytest.approx(1 / 3) == TAIL
    assert tail_mean(np.arange(n, dtype=float)[None]) == pytest.approx(np.arange(n_lowest).mean())


def test_one_strange_view_decides_nothing() -> None:
    rng = np.random.default_rng(14)
    rows = bank(rng, 9, shape=(9, 6))
    strange = rows.copy()
    strange[:, 4] -= 100 * rng.random((9, 6))
    assert np.abs(tail_mean(strange) - tail_mean(rows)).max() < 1
    assert gate(strange[0], strange[1:]).passed == gate(rows[0], rows[1:]).passed


# Closed forms


def test_with_one_image_and_one_view_it_is_the_textbook_prediction() -> None:
    """References 1, 2, 3: mean 2, s = 1, and 4 lies 2 / √(4/3) = √3 scales above; P(t₂ > √3) = ½ − √3 / (2√5)."""
    found = audit.gate([[4.0]], [[[1.0]], [[2.0]], [[3.0]]])
    assert found.t == pytest.approx(math.sqrt(3))
    assert found.p_value == pytest.approx(0.5 - math.sqrt(3) / (2 * math.sqrt(5)))
    assert found.p_over == pytest.approx(1 - found.p_value)
    assert (found.statistic, found.reference_mean, found.reference_spread) == (4.0, 2.0, 1.0)
    assert (found.degrees_of_freedom, found.n_models, found.n_views, found.n_images) == (2, 3, 1, 1)
    assert found.mean_rank == 1.0
    assert found.passed


def test_two_references_give_a_cauchy_law() -> None:
    found = gate([[3.0]], one_number(np.array([0.0, 2.0])))
    assert found.t == pytest.approx(2 / (math.sqrt(2) * math.sqrt(1.5)))
    assert found.p_value == pytest.approx(0.5 - math.atan(found.t) / math.pi)


def test_a_candidate_in_the_middle_has_p_one_half() -> None:
    found = gate([[2.0]], one_number(np.array([1.0, 2.0, 3.0])))
    assert (found.t, found.p_value, found.p_over, found.mean_rank) == (0.0, 0.5, 0.5, 0.5)
    assert found.mean_rank_p == 1.0


def test_shares_of_alpha_add_up() -> None:
    assert pytest.approx(1) == UPPER_SHARE + LOWER_SHARE + RANK_SHARE
    found = gate([[2.0]], one_number(np.array([1.0, 2.0, 3.0])), alpha=0.1)
    assert found.alpha_upper + found.alpha_lower + found.alpha_rank == pytest.approx(found.alpha)


def test_without_originals_nothing_is_said_of_power() -> None:
    found = gate([[2.0]], one_number(np.array([1.0, 2.0, 3.0])))
    assert found.power is found.learned is found.evidence_ratio is found.n_originals_rejected is None
    assert found.n_originals == 0


def test_originals_change_no_p_value() -> None:
    rng = np.random.default_rng(0)
    candidate, references, originals = bank(rng, 1)[0], bank(rng, 8), bank(rng, 6, shift=2)
    without, with_ = gate(candidate, references), gate(candidate, references, originals=originals)
    said = {"learned", "power", "n_originals_rejected", "evidence_ratio", "n_originals"}
    for field in dataclasses.fields(without):
        if field.name not in said:
            assert getattr(without, field.name) == getattr(with_, field.name), field.name
    assert with_.n_originals == 6


def test_how_much_was_learned_in_a_case_by_hand() -> None:
    found = gate([[0.0]], one_number(np.array([-1.0, 1.0])), originals=one_number(np.array([4.0, 6.0, 8.0])))
    d = 6 / math.sqrt(2)
    half = stats.norm.ppf(0.975) * math.sqrt(1 / 2 + (4 / 2) / 3 + d**2 / (2 * 1))
    assert found.learned is not None
    assert (found.learned.value, found.learned.low, found.learned.high) == pytest.approx((d, d - half, d + half))


def test_originals_that_are_no_different_leave_the_evidence_even() -> None:
    values = one_number(np.array([-1.0, 0.0, 0.5, 2.0]))
    found = gate([[0.7]], values, originals=values)
    assert found.evidence_ratio is not None
    assert found.evidence_ratio.value == pytest.approx(1)
    assert found.evidence_ratio.low < 1 < found.evidence_ratio.high
    assert found.learned is not None
    assert found.learned.value == 0
    assert found.power is not None
    assert found.power == pytest.approx(found.alpha_upper)


def test_evidence_is_the_ratio_of_predictive_densities() -> None:
    out, in_ = np.array([-1.0, 0.0, 0.5, 2.0]), np.array([3.0, 3.5, 5.0])
    found = gate([[0.7]], one_number(out), originals=one_number(in_)).evidence_ratio
    assert found is not None
    top, bottom = (
        stats.t.pdf(0.7, len(v) - 1, loc=v.mean(), scale=v.std(ddof=1) * math.sqrt(1 + 1 / len(v))) for v in (out, in_)
    )
    assert found.value == pytest.approx(top / bottom)
    squares = 0.0
    for values in (out, in_):
        logs = []
        for i in range(len(values)):
            rest = np.delete(values, i)
            scale = rest.std(ddof=1) * math.sqrt(1 + 1 / len(rest))
            logs.append(stats.t.logpdf(0.7, len(rest) - 1, loc=rest.mean(), scale=scale))
        squares += (len(values) - 1) / len(values) * sum((log - sum(logs) / len(logs)) ** 2 for log in logs)
    assert math.log(found.high / found.value) == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(squares))
    assert math.log(found.value / found.low) == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(squares))


@pytest.mark.parametrize("references", [[0.0, 1.0], [0.0, 0.0, 1.0]])
def test_evidence_has_no_range_where_leaving_one_out_leaves_no_spread(references: list[float]) -> None:
    found = gate([[0.5]], one_number(np.array(references)), originals=one_number(np.array([3.0, 4.0, 6.0, 7.0])))
    assert found.evidence_ratio is not None
    assert (found.evidence_ratio.low, found.evidence_ratio.high) == (0.0, math.inf)


def test_evidence_far_beyond_floats_is_still_a_number() -> None:
    tight = one_number(np.arange(60) * 1e-3)
    far = one_number(1e30 + np.arange(60) * 1e20)
    found = gate([[0.0]], tight, originals=far).evidence_ratio
    assert found is not None
    assert found.value == math.inf


# Invariances and monotonicity


@pytest.mark.parametrize("constant", [-7.0, 100.0])
def test_a_constant_added_to_all_margins_changes_nothing(constant: float) -> None:
    rng = np.random.default_rng(1)
    candidate, references, originals = bank(rng, 1)[0], bank(rng, 8), bank(rng, 6, shift=2)
    before = gate(candidate, references, originals=originals)
    after = gate(candidate + constant, references + constant, originals=originals + constant)
    for name in ("p_value", "p_over", "mean_rank_p", "power", "passed", "n_originals_rejected"):
        assert getattr(after, name) == pytest.approx(getattr(before, name)), name
    assert before.evidence_ratio is not None
    assert after.evidence_ratio is not None
    assert after.evidence_ratio.value == pytest.approx(before.evidence_ratio.value)


def test_another_unit_of_margins_changes_nothing() -> None:
    rng = np.random.default_rng(2)
    candidate, references = bank(rng, 1)[0], bank(rng, 8)
    before, after = gate(candidate, references), gate(candidate * 3, references * 3)
    assert (after.p_value, after.mean_rank_p) == pytest.approx((before.p_value, before.mean_rank_p))


def test_order_of_models_images_and_views_is_nothing() -> None:
    rng = np.random.default_rng(3)
    candidate, references = bank(rng, 1)[0], bank(rng, 41)
    views, images = rng.permutation(SHAPE[0]), rng.permutation(SHAPE[1])
    before = gate(candidate, references)
    after = gate(
        candidate[views][:, images], references[rng.permutation(41)][:, views][:, :, images], originals=references
    )
    for name in ("p_value", "p_over", "mean_rank", "mean_rank_p", "permutation_p", "mean_rank_permutation_p"):
        assert getattr(after, name) == pytest.approx(getattr(before, name)), name


def test_the_higher_the_margins_the_smaller_p() -> None:
    rng = np.random.default_rng(4)
    candidate, references, originals = bank(rng, 1)[0], bank(rng, 8), bank(rng, 6, shift=3)
    found = [gate(candidate + shift, references, originals=originals) for shift in np.linspace(-6, 6, 25)]
    for left, right in itertools.pairwise(found):
        assert right.p_value < left.p_value
        assert right.p_over > left.p_over
        assert right.mean_rank >= left.mean_rank
    assert not found[0].passed
    assert found[0].p_over < found[0].alpha_lower
    assert not found[-1].passed
    assert found[-1].p_value < found[-1].alpha_upper


def test_the_further_in_lies_above_out_the_more_power() -> None:
    rng = np.random.default_rng(5)
    candidate, references, originals = bank(rng, 1)[0], bank(rng, 8), bank(rng, 6)
    power = [gate(candidate, references, originals=originals + shift).power or 0.0 for shift in (0, 1, 2, 4, 8)]
    assert power == sorted(power)
    assert power[0] < 0.2
    assert power[-1] > 0.99


def test_mean_rank_sees_what_the_lowest_third_does_not() -> None:
    """A model that is as bad as references on the hard images but far too good on all others."""
    rng = np.random.default_rng(6)
    references = rng.normal(size=(16, 1, 30)) + np.r_[np.full(10, -20.0), np.full(20, 5.0)]
    candidate = references.mean(axis=0) + np.r_[np.zeros(10), np.full(20, 8.0)]
    found = gate(candidate, references)
    assert found.p_value > 0.05
    assert found.mean_rank > 0.8
    assert found.mean_rank_p < found.alpha_rank
    assert not found.passed


def test_each_bar_lies_where_its_p_value_equals_its_share() -> None:
    rng = np.random.default_rng(7)
    references = one_number(rng.normal(size=12))
    law = gate([[0.0]], references)
    for share, sign in ((UPPER_SHARE, 1), (LOWER_SHARE, -1)):
        edge = stats.t.isf(0.05 * share, 11) * law.reference_spread * math.sqrt(1 + 1 / 12)
        assert gate([[law.reference_mean + sign * (edge - 1e-6)]], references).passed
        assert not gate([[law.reference_mean + sign * (edge + 1e-6)]], references).passed


def test_the_mean_rank_has_its_own_share() -> None:
    """A mean rank that is unusual at 3.5 % but not at 0.5 % does not reject."""
    rng = np.random.default_rng(15)
    references = rng.normal(size=(16, 1, 30)) + np.r_[np.full(10, -20.0), np.full(20, 5.0)]
    easy, middle = np.r_[np.zeros(10), np.ones(20)], references.mean(axis=0)
    found = [gate(middle + shift * easy, references) for shift in np.linspace(0, 3, 100)]
    between = [one for one in found if one.alpha_rank < one.mean_rank_p < one.alpha_upper < one.p_value]
    assert between
    assert all(one.passed for one in between)


# The permutation test beside it


def test_the_permutation_test_is_the_share_of_models_at_least_as_high() -> None:
    rng = np.random.default_rng(8)
    for n in (39, 50):
        rows = bank(rng, n + 1)
        found = gate(rows[0], rows[1:])
        values = [tail_mean_twin(row) for row in rows]
        assert found.permutation_p == pytest.approx(sum(v >= values[0] for v in values) / (n + 1))
        assert found.permutation_p_over == pytest.approx(sum(v <= values[0] for v in values) / (n + 1))
        by_rank = exchangeability(rows[0].ravel(), rows[1:].reshape(n, -1))
        assert found.mean_rank_permutation_p == by_rank.p_value
        assert found.mean_rank == by_rank.mean_rank


def test_it_is_the_exact_one_by_brute_force() -> None:
    """Over every choice of the candidate among 40 models, p ≤ k/40 happens to exactly k of them."""
    rows = bank(np.random.default_rng(9), 40)
    p_values = sorted(gate(rows[i], np.delete(rows, i, axis=0)).permutation_p or 0.0 for i in range(40))
    assert p_values == pytest.approx([(k + 1) / 40 for k in range(40)])


def test_a_tie_counts_for_the_candidate_in_both_directions() -> None:
    values = np.arange(40.0)
    found = gate([[3.0]], one_number(values))
    assert found.permutation_p == pytest.approx((1 + 37) / 41)
    assert found.permutation_p_over == pytest.approx((1 + 4) / 41)


def test_below_39_references_there_is_none() -> None:
    rows = bank(np.random.default_rng(10), 39)
    found = gate(rows[0], rows[1:])
    assert found.permutation_p is found.permutation_p_over is found.mean_rank_permutation_p is None


# False positive rate and power, simulated

N_BANKS = 20_000


def within(events: int, n: int, rate: float) -> bool:
    low, high = stats.binom.interval(0.999, n, rate)
    return bool(low <= events <= high)


def p_values(candidates: np.ndarray, references: np.ndarray, pooled: PooledSpread | None = None) -> np.ndarray:
    """Upper p-values of many banks at once, `(n,)` against `(n, n_models)`: the formula the gate was shown to equal."""
    n = references.shape[1]
    variance, degrees = references.var(axis=1, ddof=1), n - 1.0
    if pooled is not None:
        variance = (degrees * variance + pooled.n_degrees * pooled.variance) / (degrees + pooled.n_degrees)
        degrees += pooled.n_degrees
    t = (candidates - references.mean(axis=1)) / np.sqrt(variance * (1 + 1 / n))
    return np.asarray(stats.t.sf(t, degrees))


def test_the_fast_formula_is_the_gate() -> None:
    rng = np.random.default_rng(11)
    references, candidates = rng.normal(size=(50, 8)), rng.normal(size=50)
    for pooled in (None, PooledSpread(0.7, 12.0)):
        fast = p_values(candidates, references, pooled)
        slow = [gate([[c]], one_number(r), pooled=pooled).p_value for c, r in zip(candidates, references, strict=True)]
        assert fast == pytest.approx(slow)


@pytest.mark.parametrize("n_models", [2, 4, 8, 16, 64])
def test_false_positives_over_gaussian_banks_are_nominal(n_models: int) -> None:
    rng = np.random.default_rng(n_models)
    p = p_values(rng.normal(size=N_BANKS), rng.normal(size=(N_BANKS, n_models)))
    for level in (0.05 * LOWER_SHARE, 0.05 * UPPER_SHARE, 0.05):
        assert within(int((p < level).sum()), N_BANKS, level)
        assert within(int((1 - p < level).sum()), N_BANKS, level)


@pytest.mark.parametrize("n_models", [4, 8, 16, 64])
def test_the_whole_gate_rejects_retrained_models_no_more_often_than_alpha(n_models: int) -> None:
    """1,000 whole gates on dependent margins; the two sides of T alone give .9 α."""
    rng, n = np.random.default_rng(100 + n_models), 1000
    rejected = 0
    for _ in range(n):
        rows = bank(rng, n_models + 1)
        rejected += not gate(rows[0], rows[1:]).passed
    low, _ = stats.binom.interval(0.999, n, 0.05 * (UPPER_SHARE + LOWER_SHARE))
    _, high = stats.binom.interval(0.999, n, 0.05)
    assert low <= rejected <= high


def test_one_bank_has_luck_of_its_own() -> None:
    """Over banks of 8 the rate of a bank at 5 % has a standard deviation near .05; of 64, near .015."""
    for n_models, low, high in ((8, 0.035, 0.075), (64, 0.008, 0.022)):
        rng = np.random.default_rng(n_models)
        references = rng.normal(size=(4000, n_models))
        scale = references.std(axis=1, ddof=1) * math.sqrt(1 + 1 / n_models)
        critical = references.mean(axis=1) + stats.t.isf(0.05, n_models - 1) * scale
        rates = stats.norm.sf(critical)
        assert rates.mean() == pytest.approx(0.05, abs=0.005)
        assert low < rates.std() < high


@pytest.mark.parametrize("n_models", [4, 8, 16])
def test_a_pooled_spread_keeps_the_rate_over_blocks(n_models: int) -> None:
    """Blocks whose true variances are scaled inverse χ² with 6 degrees; ν₀ and s₀² estimated from 30 other blocks."""
    rng = np.random.default_rng(200 + n_models)
    rejected = total = 0
    for _ in range(40):
        spreads = np.sqrt(6 / rng.chisquare(6, size=530))
        blocks = rng.normal(size=(530, n_models)) * spreads[:, None]
        pooled = pooled_spread(one_number(block) for block in blocks[:30])
        p = p_values(rng.normal(size=500) * spreads[30:], blocks[30:], pooled)
        rejected += int((p < 0.05).sum())
        total += len(p)
    assert total == N_BANKS
    assert 0.04 < rejected / total < 0.06  # the estimate's own error moves it; the binomial alone would be ± .005


def test_pooling_blocks_alike_makes_eight_references_as_good_as_many() -> None:
    """The estimate of 30 such blocks is one of them; here what is learned of hundreds."""
    rng = np.random.default_rng(300)
    pooled = pooled_spread(one_number(rng.normal(size=8)) for _ in range(500))
    assert pooled.variance == pytest.approx(1, abs=0.05)
    assert pooled.n_degrees > 40
    references, shifted = rng.normal(size=(N_BANKS, 8)), rng.normal(3.0, 1.0, size=N_BANKS)
    alone, together = (float((p_values(shifted, references, extra) < 0.035).mean()) for extra in (None, pooled))
    assert together > alone + 0.03


def test_a_pooled_spread_helps_quiet_blocks_at_the_price_of_loud_ones() -> None:
    """Half the blocks have spread 1, half 3, which is no inverse χ²: over all the rate holds nearly, by block it does
    not. This is what shrinking means; `docs/gate.md` says so."""
    rng = np.random.default_rng(301)
    spreads = np.where(np.arange(N_BANKS) % 2, 3.0, 1.0)
    blocks = rng.normal(size=(N_BANKS, 8)) * spreads[:, None]
    pooled = pooled_spread(one_number(block) for block in blocks[:40])
    p = p_values(rng.normal(size=N_BANKS) * spreads, blocks, pooled)
    quiet, loud = float((p[spreads == 1] < 0.05).mean()), float((p[spreads == 3] < 0.05).mean())
    assert quiet < 0.05 < loud < 0.1
    assert 0.04 < (quiet + loud) / 2 < 0.065
    alone = p_values(rng.normal(size=N_BANKS) * spreads, blocks)
    assert within(int((alone < 0.05).sum()), N_BANKS, 0.05)


@pytest.mark.parametrize("n_models", [8, 64])
def test_skewed_margins_move_the_rate(n_models: int) -> None:
    """T skewed like an exponential, far more than a mean of many margins is: too many high, too few low."""
    rng = np.random.default_rng(400 + n_models)
    p = p_values(rng.exponential(size=N_BANKS), rng.exponential(size=(N_BANKS, n_models)))
    assert 0.05 < (p < 0.05).mean() < 0.11
    assert (1 - p < 0.05).mean() < 0.02


def test_the_mean_of_skewed_margins_is_nearly_normal() -> None:
    """Margins each with a long tail, 30 of them on top of what a model's images share: the rate is nominal again."""
    rng, n = np.random.default_rng(500), 4000
    rows = rng.normal(size=(n, 9, 1)) * 0.5 - rng.exponential(size=(n, 9, 30))
    values = tail_mean(rows.reshape(n, 9, 1, 30))
    p = p_values(values[:, 0], values[:, 1:])
    assert 0.035 < (p < 0.05).mean() < 0.065
    assert 0.035 < (1 - p < 0.05).mean() < 0.065


def stated(references: np.ndarray, originals: np.ndarray, level: float) -> np.ndarray:
    """Power that many banks `(n, n_models)` state, `(n,)`."""
    critical, place, scale = (
        references.mean(axis=1) + stats.t.isf(level, references.shape[1] - 1) * predictive_scale(references),
        originals.mean(axis=1),
        predictive_scale(originals),
    )
    return np.asarray(stats.t.sf((critical - place) / scale, originals.shape[1] - 1))


def predictive_scale(banks: np.ndarray) -> np.ndarray:
    return np.asarray(banks.std(axis=1, ddof=1) * math.sqrt(1 + 1 / banks.shape[1]))


def test_the_fast_power_is_the_gates() -> None:
    rng = np.random.default_rng(13)
    references, originals = rng.normal(size=(30, 8)), rng.normal(2, 1.5, size=(30, 5))
    slow = [
        gate([[0.0]], one_number(out), originals=one_number(in_)).power
        for out, in_ in zip(references, originals, strict=True)
    ]
    assert stated(references, originals, 0.05 * UPPER_SHARE) == pytest.approx(slow)


@pytest.mark.parametrize(
    ("n_models", "n_originals", "d", "spread"),
    [(8, 16, 3.0, 1.0), (8, 8, 2.0, 1.0), (16, 16, 1.0, 1.0), (4, 8, 4.0, 1.0), (8, 16, 3.0, 0.5), (8, 16, 3.0, 2.0)],
)
def test_stated_power_is_the_rate_at_which_originals_are_rejected(n_models, n_originals, d, spread) -> None:
    """Mean of the powers stated over 20,000 banks beside the share of fresh originals with a p below the upper level.

    A predictive law of few originals has wide tails, so that stated power is a little nearer to ½ than the true one.
    """
    rng, level = np.random.default_rng([600, n_models, n_originals, int(10 * d * spread)]), 0.05 * UPPER_SHARE
    references = rng.normal(size=(N_BANKS, n_models))
    power = stated(references, rng.normal(d, spread, size=(N_BANKS, n_originals)), level).mean()
    true = (p_values(rng.normal(d, spread, size=N_BANKS), references) < level).mean()
    assert power == pytest.approx(true, abs=0.03)
    assert abs(power - 0.5) < abs(true - 0.5) + 0.01


@pytest.mark.parametrize("spread", [0.6, 1.0, 1.5])
def test_the_interval_of_what_was_learned_covers(spread: float) -> None:
    """The large-sample interval holds 92 % or more of the time already for 8 and 16 models."""
    rng, n = np.random.default_rng(700), 300
    inside = 0
    for _ in range(n):
        learned = gate(
            [[0.0]], one_number(rng.normal(size=8)), originals=one_number(rng.normal(2.5, spread, size=16))
        ).learned
        assert learned is not None
        inside += 2.5 in learned
    low, _ = stats.binom.interval(0.999, n, 0.92)
    assert inside >= low


def test_a_pooled_spread_is_the_unit_of_what_was_learned() -> None:
    out, in_ = one_number(np.array([-1.0, 1.0])), one_number(np.array([4.0, 6.0, 8.0]))
    found = gate([[0.0]], out, originals=in_, pooled=PooledSpread(4.0, math.inf)).learned
    assert found is not None
    assert found.value == pytest.approx(6 / 2)
    assert found.high - found.value == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(1 / 2 + 1 / 3))


def test_the_original_models_at_hand_are_counted() -> None:
    rng = np.random.default_rng(800)
    references, originals = bank(rng, 8), np.concatenate([bank(rng, 3, shift=9), bank(rng, 2, shift=0)])
    found = gate(bank(rng, 1)[0], references, originals=originals)
    assert found.n_originals_rejected == sum(not gate(original, references).passed for original in originals) == 3


# The pooled spread


def test_pooled_moments_are_found_again() -> None:
    rng = np.random.default_rng(900)
    spreads = np.sqrt(2.5 * 10 / rng.chisquare(10, size=4000))
    found = pooled_spread(one_number(rng.normal(size=8) * spread) for spread in spreads)
    assert found.variance == pytest.approx(2.5, rel=0.05)
    assert found.n_degrees == pytest.approx(10, rel=0.15)


def test_pooling_takes_the_statistic_of_banks_of_any_shape() -> None:
    rng = np.random.default_rng(901)
    banks = [bank(rng, n, shape=shape) for n, shape in ((5, (1, 4)), (8, (3, 2)), (6, (11, 10)))]
    numbers = [one_number(np.array([tail_mean_twin(model) for model in b])) for b in banks]
    found, expected = pooled_spread(banks), pooled_spread(numbers)
    assert (found.variance, found.n_degrees) == pytest.approx((expected.variance, expected.n_degrees))


def test_blocks_that_do_not_differ_are_worth_at_most_their_own_degrees() -> None:
    banks = [one_number(np.array([-1.0, 0.0, 1.0]) + i) for i in range(5)]
    found = pooled_spread(banks)
    assert found.n_degrees == 10
    # every sample variance is 1: E log s² = log s₀² + [ψ(d/2) − log(d/2)] − [ψ(ν₀/2) − log(ν₀/2)]
    from scipy.special import digamma

    assert math.log(found.variance) == pytest.approx(-digamma(1) + math.log(1) + digamma(5) - math.log(5))


def test_blocks_that_hardly_differ_are_worth_no_more_either() -> None:
    """Log variances a little more apart than by chance would give thousands of degrees."""
    rng = np.random.default_rng(903)
    for _ in range(50):
        banks = [one_number(rng.normal(size=8)) for _ in range(6)]
        found = pooled_spread(banks)
        assert 0 < found.n_degrees <= 6 * 7
    exact = np.sqrt(np.exp(np.array([-1.0, 1.0, 0.0]) * math.sqrt(1.001 * math.pi**2 / 6)))  # ψ′(1) = π²/6, d = 2
    found = pooled_spread(one_number(np.array([-1.0, 0.0, 1.0]) * spread) for spread in exact)
    assert found.n_degrees == 6


def test_a_shrunk_spread_in_a_case_by_hand() -> None:
    found = gate([[4.0]], one_number(np.array([1.0, 2.0, 3.0])), pooled=PooledSpread(4.0, 6.0))
    assert found.reference_spread == pytest.approx(math.sqrt((2 * 1 + 6 * 4) / 8))
    assert found.degrees_of_freedom == 8
    assert found.p_value == pytest.approx(stats.t.sf(2 / (found.reference_spread * math.sqrt(4 / 3)), 8))


def test_infinitely_many_pooled_degrees_are_a_known_spread() -> None:
    found = gate([[4.0]], one_number(np.array([1.0, 2.0, 3.0])), pooled=PooledSpread(4.0, math.inf))
    assert found.reference_spread == 2.0
    assert found.p_value == pytest.approx(stats.norm.sf(2 / (2 * math.sqrt(4 / 3))))


@pytest.mark.parametrize(
    ("variance", "n_degrees"), [(0.0, 4.0), (math.nan, 4.0), (math.inf, 4.0), (1.0, 0.0), (1, math.nan)]
)
def test_a_pooled_spread_of_nothing_is_refused(variance: float, n_degrees: float) -> None:
    with pytest.raises(OptionError, match=r"Expected .* got"):
        PooledSpread(variance, n_degrees)


def test_fewer_than_three_blocks_are_no_pool() -> None:
    rng = np.random.default_rng(902)
    with pytest.raises(BankError, match=r"at least 3 blocks to pool, got 2"):
        pooled_spread([bank(rng, 4), bank(rng, 4)])
    with pytest.raises(BankError, match=r"bank 1 of the pooled ones that differ"):
        pooled_spread([bank(rng, 4), np.zeros((4, 1, 1)), bank(rng, 4)])


# Refusals and edges

GOOD = np.arange(24.0).reshape(4, 2, 3)


@pytest.mark.parametrize(
    ("candidate", "references", "originals", "sentence"),
    [
        (GOOD[0], GOOD[:, 0], None, r"references of shape \(n_models, n_views >= 1, n_images >= 1\), got \(4, 3\)"),
        (GOOD[0, 0], GOOD, None, r"candidate of shape \(n_views, n_images\) = \(2, 3\).*got \(3,\)"),
        (GOOD[0, :1], GOOD, None, r"candidate of shape .* = \(2, 3\).*got \(1, 3\); score the same images"),
        (GOOD[0], GOOD[:1], None, r"at least 2 models in references, got 1"),
        (GOOD[0], GOOD[:0], None, r"at least 2 models in references, got 0"),
        (GOOD[0], GOOD[:, :, :0], None, r"n_images >= 1\), got \(4, 2, 0\)"),
        (GOOD[0], GOOD, GOOD[:1], r"at least 2 models in originals, got 1"),
        (GOOD[0], GOOD, GOOD[:, :1], r"originals of shape .* \(n_models, 2, 3\).*got \(4, 1, 3\)"),
        (GOOD[0] * np.nan, GOOD, None, r"finite margins in candidate, got nan at \[0, 0\] \(6 such values\)"),
        (GOOD[0], GOOD + np.inf, None, r"finite margins in references, got inf at \[0, 0, 0\]"),
        (GOOD[0], GOOD, GOOD - np.inf, r"finite margins in originals, got -inf"),
        (GOOD[0], GOOD * 0, None, r"models of references that differ.*all 4; train each with a seed of its own"),
        (GOOD[0], GOOD, GOOD * 0, r"models of originals that differ"),
        ([[1.0, 2.0], [3.0]], GOOD, None, r"candidate as numbers, every model with the same views and images"),
        (GOOD[0], [[[1.0], [2.0]], [[1.0]]], None, r"references as numbers"),
    ],
)
def test_what_cannot_be_judged_is_refused_with_a_sentence(candidate, references, originals, sentence) -> None:
    with pytest.raises(BankError, match=sentence) as caught:
        gate(candidate, references, originals=originals)
    assert str(caught.value).startswith("Expected ")


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(OptionError, match=r"Expected alpha in \(0, 1\), got"):
        gate(GOOD[0], GOOD, alpha=alpha)


def test_arguments_are_left_as_they_were() -> None:
    candidate, references = GOOD[0].copy(), GOOD.copy()
    gate(candidate, references, originals=references)
    assert (candidate == GOOD[0]).all()
    assert (references == GOOD).all()


def test_crossing_references_with_equal_mean_ranks_are_no_certainty() -> None:
    """Two references that lead on one image each have equal mean ranks; their spread must not count as 0."""
    found = gate([[9.0, 9.0]], [[[1.0, 2.0]], [[2.5, 1.5]]])
    assert found.mean_rank == 1.0
    assert found.mean_rank_p > 0.1


def test_float32_margins_are_judged_in_float64() -> None:
    rng = np.random.default_rng(12)
    rows = bank(rng, 9).astype(np.float32)
    assert gate(rows[0], rows[1:]) == gate(rows[0].astype(np.float64), rows[1:].astype(np.float64))
