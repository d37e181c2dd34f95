import numpy as np
import pytest
from scipy import stats

from audit import forgetting_quality
from audit.errors import BankError, OptionError
from audit.studies.experiments import SETUPS, Pool, agreement, run_experiments


@pytest.fixture
def pool(draw):
    def pool(seed, *, n_sets=1, n_models=32, shift=0.0, accuracy=0.9):
        rng = np.random.default_rng(seed)
        rows = np.stack([draw(rng, n_models, 4, shift=shift) for _ in range(n_sets)])
        values = np.clip(rng.normal(accuracy, 0.01, rows.shape[:2]), 0, 1)
        return Pool(rows, values, values)

    return pool


def test_full_uses_every_fresh_set_once(pool):
    u, r = pool(0, n_sets=3), pool(1, n_sets=3)
    result = run_experiments("full", u, r, seed=0, n_experiments=3)
    for i in range(3):
        quality = forgetting_quality(u.margins[i], r.margins[i]).value
        ratio = u.retain_accuracy[i].mean() / r.retain_accuracy[i].mean()
        assert result.scores[i] == pytest.approx(quality * ratio**2)
    assert result.n_models == 32
    assert result.score.value == pytest.approx(result.scores.mean())
    assert result.scores.min() <= result.score.low <= result.score.high <= result.scores.max()


@pytest.mark.parametrize("setup", ["reuse_n_n", "reuse_n_1"])
def test_reuse_draws_half_of_the_pools_without_replacement(pool, setup):
    result = run_experiments(setup, pool(0), pool(1), seed=0, n_experiments=12)
    assert result.n_models == 16
    assert result.scores.shape == (12,)
    assert len(set(result.scores.tolist())) > 1
    assert result.score.low <= result.score.value <= result.score.high
    again = run_experiments(setup, pool(0), pool(1), seed=0, n_experiments=12)
    assert (again.scores == result.scores).all()


def test_reuse_n_1_draws_one_original_an_experiment(pool):
    u, r = pool(0, n_sets=2), pool(1)
    far = Pool(np.stack([u.margins[0], u.margins[1] + 50]), u.retain_accuracy, u.test_accuracy)
    result = run_experiments("reuse_n_1", far, r, seed=0, n_experiments=20)
    assert 0 < (result.scores == 0).sum() < 20  # never a mixture of two originals


def test_a_perfect_unlearner_reaches_the_null(pool):
    # Both are means over 30 draws of 4 dependent examples from pools of 48: they agree within about 15 %.
    result = run_experiments("reuse_n_n", pool(0, n_models=48), pool(1, n_models=48), seed=0, n_experiments=30)
    assert result.forgetting.value == pytest.approx(result.null.value, rel=0.3)
    worse = run_experiments(
        "reuse_n_n", pool(0, n_models=48, shift=1.5), pool(1, n_models=48), seed=0, n_experiments=30
    )
    assert worse.forgetting.high < result.forgetting.low


def test_pools_take_one_set_without_its_axis():
    assert Pool(np.zeros((5, 2)), np.ones(5), np.ones(5)).margins.shape == (1, 5, 2)


def test_pools_that_do_not_fit_are_refused(pool):
    with pytest.raises(BankError, match="retain_accuracy"):
        Pool(np.zeros((5, 2)), np.ones(4), np.ones(5))
    with pytest.raises(BankError, match="margins"):
        Pool(np.zeros(5), np.ones(5), np.ones(5))
    with pytest.raises(OptionError, match=", ".join(SETUPS)):
        run_experiments("n_n", pool(0), pool(1), seed=0)
    with pytest.raises(BankError, match="fresh models"):
        run_experiments("full", pool(0), pool(1), seed=0, n_experiments=2)
    with pytest.raises(BankError, match="one pool of unlearned"):
        run_experiments("reuse_n_n", pool(0, n_sets=2), pool(1), seed=0)
    with pytest.raises(BankError, match="one pool of retrained"):
        run_experiments("reuse_n_1", pool(0), pool(1, n_sets=2), seed=0)
    with pytest.raises(BankError, match="n_models"):
        run_experiments("reuse_n_n", pool(0), pool(1), seed=0, n_models=33)
    with pytest.raises(BankError, match="same examples"):
        run_experiments("reuse_n_n", pool(0), Pool(np.zeros((32, 3)), np.ones(32), np.ones(32)), seed=0)


def test_agreement_is_kendalls_tau_with_an_interval():
    rng = np.random.default_rng(0)
    first = {name: rng.normal(level, 0.01, 20) for name, level in zip("abcde", (0.1, 0.2, 0.3, 0.4, 0.5), strict=True)}
    second = {name: rng.normal(level, 0.01, 20) for name, level in zip("abcde", (0.1, 0.3, 0.2, 0.4, 0.5), strict=True)}
    result = agreement(first, second, seed=0, n_draws=200)
    expected = stats.kendalltau([v.mean() for v in first.values()], [v.mean() for v in second.values()]).statistic
    assert result.tau.value == pytest.approx(expected) == pytest.approx(0.8)
    assert (result.tau.low, result.tau.high) == (pytest.approx(0.8), pytest.approx(0.8))
    noisy = {name: rng.normal(0.3, 0.1, 20) for name in "abcde"}
    wide = agreement(first, noisy, seed=0, n_draws=200).tau
    assert wide.high - wide.low > 0.3
    with pytest.raises(OptionError, match="same two or more"):
        agreement(first, {"a": [1.0]}, seed=0)
