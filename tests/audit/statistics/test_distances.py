"""Distances against SciPy, loop twins and known divergences; combined p-values against dependent examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from audit.errors import BankError, OptionError
from audit.statistics.distances import detect, energy_distances, kl_divergences, ks_statistics, permuted_labels

VALUES = st.lists(st.integers(-3, 3).map(float), min_size=4, max_size=12)


@settings(max_examples=100)
@given(VALUES, st.integers(0, 1000))
def test_ks_distances_are_scipys_under_every_labelling(values, seed):
    pooled = np.array(values)[:, None]
    n_first = max(1, len(values) // 3)
    labels = permuted_labels(n_first, len(values) - n_first, n_permutations=19, seed=seed)
    found = ks_statistics(pooled, labels)[:, 0]
    expected = [stats.ks_2samp(pooled[row, 0], pooled[~row, 0]).statistic for row in labels]
    assert found == pytest.approx(expected, abs=1e-12)


def test_ks_in_chunks_is_the_same(draw, monkeypatch):
    rng = np.random.default_rng(0)
    pooled = draw(rng, 30, 4)
    labels = permuted_labels(10, 20, n_permutations=50, seed=0)
    whole = ks_statistics(pooled, labels)
    monkeypatch.setattr("audit.statistics.distances._CHUNK_BYTES", 2000)
    np.testing.assert_array_equal(ks_statistics(pooled, labels), whole)


def test_energy_is_its_definition(draw):
    rng = np.random.default_rng(1)
    u, r = draw(rng, 7, 3), draw(rng, 9, 3, shift=1.0)

    def mean_distance(a, b):
        return np.mean([[np.linalg.norm(x - y) for y in b] for x in a])

    expected = 2 * mean_distance(u, r) - mean_distance(u, u) - mean_distance(r, r)
    labels = permuted_labels(7, 9, n_permutations=19, seed=0)
    assert energy_distances(np.concatenate([u, r]), labels)[0] == pytest.approx(expected)


def test_labels_keep_their_numbers_and_start_with_the_truth():
    labels = permuted_labels(3, 5, n_permutations=30, seed=0)
    assert labels.shape == (31, 8)
    assert labels[0].tolist() == [True] * 3 + [False] * 5
    assert (labels.sum(axis=1) == 3).all()
    with pytest.raises(OptionError, match="n_permutations"):
        permuted_labels(3, 5, n_permutations=9, seed=0)


def test_equal_banks_of_dependent_examples_raise_no_alarm_beyond_the_level(draw):
    # 300 pairs of exchangeable banks, strongly dependent examples, permutations giving p in steps of 1/100: the central
    # 99.9 % of Binomial(300, .05) is 4 to 29; multiplying per-example p-values would reject several times as often.
    rng = np.random.default_rng(2)
    ks, energy = 0, 0
    for seed in range(300):
        pooled = draw(rng, 48, 6, dependence=0.8)
        labels = permuted_labels(24, 24, n_permutations=99, seed=seed)
        means, energies = ks_statistics(pooled, labels).mean(axis=1), energy_distances(pooled, labels)
        ks += (means >= means[0]).mean() <= 0.05
        energy += (energies >= energies[0] - 1e-12).mean() <= 0.05
    low, high = stats.binom.interval(0.999, 300, 0.05)
    assert low <= ks <= high
    assert low <= energy <= high


def test_what_differs_is_found(draw):
    rng = np.random.default_rng(3)
    r = draw(rng, 64, 8)
    same = detect(draw(rng, 64, 8), r, seed=0, n_permutations=199)
    shifted = detect(draw(rng, 64, 8, shift=0.8), r, seed=0, n_permutations=199)
    narrow = detect(draw(rng, 64, 8, spread=0.4), r, seed=0, n_permutations=199)
    assert same.n_rejected == 0
    assert same.ks_combined_p > 0.05
    assert same.energy_p > 0.05
    for found in (shifted, narrow):
        assert found.n_rejected >= 4
        assert found.ks_combined_p == found.energy_p == pytest.approx(1 / 200)
    assert shifted.ks_mean == pytest.approx(shifted.ks.mean())


def test_adjusted_p_values_are_benjamini_and_hochbergs(draw):
    rng = np.random.default_rng(4)
    u, r = draw(rng, 40, 10, shift=0.4), draw(rng, 40, 10)
    result = detect(u, r, seed=0, n_permutations=19)
    p = np.array([stats.ks_2samp(u[:, i], r[:, i]).pvalue for i in range(10)])
    assert result.ks_p_values == pytest.approx(p)
    order = np.argsort(p)
    twin = np.empty(10)
    smallest = 1.0
    for rank, index in reversed(list(enumerate(order, start=1))):
        smallest = min(smallest, p[index] * 10 / rank)
        twin[index] = smallest
    assert result.ks_adjusted == pytest.approx(twin)
    assert result.n_rejected == (twin <= 0.05).sum()


@pytest.mark.parametrize(
    ("mean", "sd", "divergence"),
    [(0.0, 1.0, 0.0), (1.0, 1.0, 0.5), (0.0, 0.5, 0.318147), (0.0, 2.0, 0.806853), (-1.0, 2.0, 1.306853)],
)
def test_kl_is_unbiased_for_gaussians(mean, sd, divergence):
    rng = np.random.default_rng(5)
    first, second = rng.normal(mean, sd, (32, 4000)), rng.normal(0.0, 1.0, (48, 4000))
    found = kl_divergences(first, second)
    error = found.std() / np.sqrt(len(found))
    assert found.mean() == pytest.approx(divergence, abs=4 * error)  # 4 sd: one seed in 16,000 fails
    assert error < 0.02


def test_kl_has_a_direction(draw):
    result = detect(draw(np.random.default_rng(6), 200, 3, spread=0.5), draw(np.random.default_rng(7), 200, 3), seed=0)
    assert result.kl_unlearned_retrained == pytest.approx(np.full(3, 0.318), abs=0.12)
    assert result.kl_retrained_unlearned == pytest.approx(np.full(3, 0.807), abs=0.35)


def test_kl_of_constants():
    one, other = np.zeros((5, 1)), np.ones((5, 1))
    spread = np.arange(5.0)[:, None]
    assert kl_divergences(one, one)[0] == 0.0
    for first, second in ((one, other), (one, spread), (spread, one)):
        assert kl_divergences(first, second)[0] == np.inf
    with pytest.raises(BankError, match="against 4"):
        kl_divergences(one, one[:3])


def test_infinite_margins_are_taken_at_the_saturation(draw):
    rng = np.random.default_rng(8)
    u, r = draw(rng, 20, 2), draw(rng, 20, 2)
    u[0, 0] = np.inf
    result = detect(u, r, seed=0, n_permutations=19)
    assert np.isfinite(result.energy)
    assert np.isfinite(result.kl_unlearned_retrained).all()


def test_the_seed_fixes_the_permutations():
    rng = np.random.default_rng(0)
    u, r = rng.normal(size=(12, 3)), rng.normal(size=(12, 3))
    found = {seed: [detect(u, r, seed=seed, n_permutations=200) for _ in range(2)] for seed in range(6)}
    assert all(first.ks_combined_p == second.ks_combined_p for first, second in found.values())
    assert len({first.ks_combined_p for first, _ in found.values()}) > 1
