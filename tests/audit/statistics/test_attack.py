import numpy as np
import pytest
from scipy import stats

from audit.errors import BankError, OptionError
from audit.statistics.attack import _rocs, attack


@pytest.mark.parametrize("form", ["gaussian", "quantile"])
def test_equal_banks_are_a_coin(draw, form):
    # The forget set's AUC of 128 against 128 models has standard error about 0.04.
    rng = np.random.default_rng(0)
    result = attack(draw(rng, 128, 6), draw(rng, 128, 6), seed=0, form=form)
    assert result.auc.value == pytest.approx(0.5, abs=0.1)
    assert 0.5 in result.auc
    assert result.auc_forget_set.value == pytest.approx(0.5, abs=0.15)
    assert result.tpr_at_fpr.value < 0.06


@pytest.mark.parametrize("form", ["gaussian", "quantile"])
def test_what_is_remembered_is_told_and_what_is_overforgotten_too(draw, form):
    rng = np.random.default_rng(1)
    r = draw(rng, 64, 6)
    kept = attack(draw(rng, 64, 6, shift=1.5), r, seed=0, form=form)
    lost = attack(draw(rng, 64, 6, shift=-1.5), r, seed=0, form=form)
    assert kept.auc.low > 0.7
    assert kept.tpr_at_fpr.value > 0.05
    assert lost.auc.high < 0.3


def test_gaussian_auc_of_a_known_shift():
    # Φ(d/√2) for a shift of d sd; the shadow half estimates mean and sd, which costs a little.
    rng = np.random.default_rng(2)
    result = attack(rng.normal(1, 1, (512, 20)), rng.normal(0, 1, (512, 20)), seed=0)
    assert result.auc.value == pytest.approx(stats.norm.cdf(1 / np.sqrt(2)), abs=0.01)
    assert result.tpr_at_fpr.value == pytest.approx(stats.norm.sf(stats.norm.isf(0.01) - 1), abs=0.02)


def test_areas_are_mann_whitneys_with_ties_and_weights():
    rng = np.random.default_rng(3)
    p, n = rng.integers(0, 5, (6, 3)).astype(float), rng.integers(-1, 4, (5, 3)).astype(float)
    picked_p, picked_n = rng.integers(6, size=6), rng.integers(5, size=5)
    weights_p = np.stack([np.full(6, 1 / 6), np.bincount(picked_p, minlength=6) / 6])
    weights_n = np.stack([np.full(5, 1 / 5), np.bincount(picked_n, minlength=5) / 5])
    areas, _, _ = _rocs(p, n, weights_p, weights_n)
    for area, a, b in zip(areas, (p, p[picked_p]), (n, n[picked_n]), strict=True):
        expected = stats.mannwhitneyu(a.ravel(), b.ravel()).statistic / a.size / b.size
        assert area == pytest.approx(expected)


def test_the_roc_is_the_share_of_positives_above_each_negative():
    rng = np.random.default_rng(4)
    p, n = rng.normal(1, 1, (7, 1)), rng.normal(0, 1, (200, 1))
    even = np.full((1, 7), 1 / 7), np.full((1, 200), 1 / 200)
    _, tprs, curve = _rocs(p, n, *even)
    threshold = np.sort(n.ravel())[-2]  # two of 200 at or above: 1 %
    assert tprs[0] == pytest.approx((p >= threshold).mean())
    assert curve[-1] == pytest.approx(1.0)
    assert (np.diff(curve) >= 0).all()


def test_constant_shadow_models_leave_an_order():
    u, r = np.full((4, 1), 2.0), np.ones((8, 1))
    assert attack(u, r, seed=0).auc.value == 1.0
    assert attack(r[:4], r, seed=0).auc.value == 0.5


def test_it_is_reproducible_and_refuses_what_it_cannot_use(draw):
    rng = np.random.default_rng(5)
    u, r = draw(rng, 12, 2), draw(rng, 12, 2)
    assert attack(u, r, seed=1).auc == attack(u, r, seed=1).auc
    with pytest.raises(OptionError, match="quantile"):
        attack(u, r, seed=1, form="online")
    with pytest.raises(BankError, match="at least 4"):
        attack(u, r[:3], seed=1)
