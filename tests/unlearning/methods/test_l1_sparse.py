import pytest

from unlearning.methods.l1_sparse import L1SparseSettings, fading, l1_sparse


def test_penalty_fades_linearly():
    assert [fading(0.4, step, 4) for step in range(4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_penalty_shrinks_the_weights(model, retain, as_bound):
    plain, sparse = (
        l1_sparse(model, None, retain, settings=as_bound(L1SparseSettings, alpha=alpha), seed=1, device="cpu")
        for alpha in (0.0, 0.01)
    )
    norms = [sum(float(p.detach().abs().sum()) for p in network.parameters()) for network in (plain, sparse)]
    assert norms[1] < 0.98 * norms[0]


def test_defaults_are_the_authors():
    settings = L1SparseSettings()
    assert (settings.alpha, settings.learning_rate, settings.epochs) == (3e-4, 0.01, 10.0)
