import pytest
import torch

from unlearning.methods.dilute import DiluteSettings, add_noise, dilute
from unlearning.procedures.modules import layer_weights


def test_spread_of_every_weight_stays_and_the_old_part_shrinks(feed):
    network = torch.nn.Sequential(torch.nn.Conv2d(16, 64, 3), torch.nn.BatchNorm2d(64), torch.nn.Linear(300, 200))
    before = {name: weight.detach().clone() for name, weight in layer_weights(network).items()}
    others = {name: p.detach().clone() for name, p in network.named_parameters() if name not in before}
    add_noise(network, 0.6, feed)
    for name, weight in layer_weights(network).items():
        assert weight.std().item() == pytest.approx(before[name].std().item(), rel=0.03)
        kept = torch.corrcoef(torch.stack([weight.flatten(), before[name].flatten()]))[0, 1].item()
        assert kept == pytest.approx(0.8, abs=0.03)
    assert all(torch.equal(network.get_parameter(name), p) for name, p in others.items())


def test_no_noise_no_repair_is_the_original(model, retain, as_bound, same):
    settings = as_bound(DiluteSettings, noise_share=0.0, epochs=0.0)
    assert same(dilute(model, None, retain, settings=settings, seed=1, device="cpu"), model)


def test_all_noise_keeps_nothing_of_the_weights(model, retain, as_bound):
    settings = as_bound(DiluteSettings, noise_share=1.0, epochs=0.0)
    result = dilute(model, None, retain, settings=settings, seed=1, device="cpu")
    for name, weight in layer_weights(model).items():
        if weight.numel() > 500:  # 0.2 is 4.5 standard deviations of the correlation of independent draws
            kept = torch.corrcoef(torch.stack([result.get_parameter(name).flatten(), weight.flatten()]))[0, 1]
            assert abs(kept) < 0.2
