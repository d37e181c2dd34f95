from torch.nn.functional import cross_entropy

from unlearning.methods import neggrad_plus as room
from unlearning.methods.neggrad_plus import NegGradPlusSettings, neggrad_plus
from unlearning.models import to_inputs


def test_loss_is_the_weighted_difference(monkeypatch, model, forget, retain):
    losses = []
    monkeypatch.setattr(room, "descend", lambda optimiser, loss, rate, **options: losses.append(loss.item()))
    for alpha in (1.0, 0.0, 0.95):
        settings = NegGradPlusSettings(epochs=1.0, alpha=alpha)
        neggrad_plus(model, forget, retain, settings=settings, seed=1, device="cpu")
    keep, forgotten, both = losses
    assert keep > 0 > forgotten
    assert abs(both - (0.95 * keep + 0.05 * forgotten)) < 1e-5


def test_forgets_more_than_it_loses(model, forget, retain, as_bound):
    settings = as_bound(NegGradPlusSettings, alpha=0.3, learning_rate=0.02, batch_size=16)
    result = neggrad_plus(model, forget, retain, settings=settings, seed=1, device="cpu").eval()

    def loss(network, examples):
        return cross_entropy(network(to_inputs(examples.images)), examples.labels).item()

    assert loss(result, forget) - loss(model, forget) > loss(result, retain) - loss(model, retain)
