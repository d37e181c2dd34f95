import pytest
import torch

from unlearning.methods import seif as room
from unlearning.methods.seif import SeifSettings, add_noise, seif, weighted
from unlearning.procedures.modules import convolution_weights


def difference(result, model) -> dict[str, torch.Tensor]:
    return {name: (p - model.get_parameter(name)).detach() for name, p in result.named_parameters()}


def test_noise_reaches_all_convolutions_and_nothing_else(model, retain, as_bound):
    settings = as_bound(SeifSettings, learning_rate=0.0, late_noise=0.0)
    moved = difference(seif(model, None, retain, settings=settings, seed=1, device="cpu"), model)
    kernels = convolution_weights(model)
    noise = torch.cat([moved[name].flatten() for name in kernels])
    assert noise.std().item() == pytest.approx(0.6, rel=0.05)
    assert noise.mean().item() == pytest.approx(0.0, abs=0.05)
    assert all(not moved[name].any() for name in moved if name not in kernels)


def test_noise_on_the_stem_only(model, retain, as_bound):
    settings = as_bound(SeifSettings, learning_rate=0.0, late_noise=0.0, noise_on="stem")
    moved = difference(seif(model, None, retain, settings=settings, seed=1, device="cpu"), model)
    assert {name for name, change in moved.items() if change.any()} == {"stem.weight"}


def test_little_noise_comes_after_the_epoch_before_the_last(monkeypatch, model, retain, as_bound):
    story = []
    monkeypatch.setattr(room, "add_noise", lambda kernels, std, feed: story.append(std))
    monkeypatch.setattr(room, "descend", lambda optimiser, loss, rate, **options: story.append("step"))
    settings = as_bound(SeifSettings, batch_size=16)
    seif(model, None, retain, settings=settings, seed=1, device="cpu")
    assert story == [0.6, *["step"] * 9, 0.005, *["step"] * 3]


def test_loss_is_weighted_by_class(model, retain, as_bound, same):
    lopsided = retain.subset([i for i, label in enumerate(retain.labels.tolist()) if label != 0 or i < 3])
    plain, balanced = (
        seif(model, None, lopsided, settings=as_bound(SeifSettings, batch_size=16, **options), seed=1, device="cpu")
        for options in ({"class_weight_power": 0.0}, {"class_weight_power": 1.0})
    )
    assert not same(plain, balanced)


@pytest.mark.parametrize("weights_on", ["batch", "example"])
def test_class_weights_act_on_the_batch_or_on_each_example(weights_on):
    """The team multiplies the mean loss by the mean weight; the other is the weighted mean."""
    outputs = torch.tensor([[2.0, 0.0], [0.5, 1.0], [-1.0, 3.0]])
    labels, weights = torch.tensor([0, 0, 1]), torch.tensor([0.25, 2.0])
    losses = [-outputs[i].softmax(0)[labels[i]].log().item() for i in range(3)]
    each = [0.25, 0.25, 2.0]
    expected = {
        "batch": sum(losses) / 3 * sum(each) / 3,
        "example": sum(w * loss for w, loss in zip(each, losses, strict=True)) / sum(each),
    }
    found = weighted(outputs, labels, weights, SeifSettings(weights_on=weights_on))
    assert found.item() == pytest.approx(expected[weights_on], rel=1e-5)
    assert weighted(outputs, labels, None, SeifSettings()).item() == pytest.approx(sum(losses) / 3, rel=1e-5)


def test_add_noise_draws_from_the_feed(feed):
    kernel = torch.nn.Parameter(torch.zeros(40, 40))
    add_noise([kernel], 0.2, feed)
    assert kernel.std().item() == pytest.approx(0.2, rel=0.1)


def test_defaults_are_the_teams():
    settings = SeifSettings()
    assert (settings.noise, settings.late_noise, settings.noise_on) == (0.6, 0.005, "convolutions")
    assert (settings.epochs, settings.learning_rate, settings.weight_decay) == (4.0, 7e-4, 5e-4)
    assert (settings.schedule, settings.class_weight_power, settings.weights_on) == ("cosine", 1.0, "batch")
