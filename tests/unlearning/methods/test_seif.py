import pytest
import torch

from unlearning.methods import seif as room
from unlearning.methods.seif import SeifSettings, add_noise, seif
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
    plain, weighted = (
        seif(model, None, lopsided, settings=as_bound(SeifSettings, class_weight_power=power), seed=1, device="cpu")
        for power in (0.0, 1.0)
    )
    assert not same(plain, weighted)


def test_add_noise_draws_from_the_feed(feed):
    kernel = torch.nn.Parameter(torch.zeros(40, 40))
    add_noise([kernel], 0.2, feed)
    assert kernel.std().item() == pytest.approx(0.2, rel=0.1)


def test_defaults_are_the_teams():
    settings = SeifSettings()
    assert (settings.noise, settings.late_noise, settings.noise_on) == (0.6, 0.005, "convolutions")
    assert (settings.epochs, settings.learning_rate, settings.weight_decay) == (4.0, 7e-4, 5e-4)
    assert settings.schedule == "cosine"
