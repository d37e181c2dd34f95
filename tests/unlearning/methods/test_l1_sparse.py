import pytest
import torch

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


def test_one_step_moves_every_weight_by_the_sign_of_itself_beside_fine_tuning(model, retain, as_bound):
    options = {"epochs": 1.0, "batch_size": 64, "learning_rate": 1e-3, "momentum": 0.0}
    plain, sparse = (
        l1_sparse(model, None, retain, settings=as_bound(L1SparseSettings, alpha=a, **options), seed=1, device="cpu")
        for a in (0.0, 0.5)
    )
    for name, before in model.named_parameters():
        moved = sparse.get_parameter(name) - plain.get_parameter(name)
        torch.testing.assert_close(moved, -1e-3 * 0.5 * before.sign(), atol=1e-6, rtol=0)


def test_defaults_are_the_authors():
    settings = L1SparseSettings()
    assert (settings.alpha, settings.learning_rate, settings.epochs) == (3e-4, 0.01, 10.0)
