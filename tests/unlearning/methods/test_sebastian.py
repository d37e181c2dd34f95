import copy

import pytest
import torch

from unlearning.methods.sebastian import SebastianSettings, entropy, redraw_uniform, sebastian
from unlearning.procedures.modules import layer_weights


def test_ninety_nine_per_cent_of_all_weights_and_biases_are_pruned(model, retain, as_bound):
    settings = as_bound(SebastianSettings, epochs=0.0, half=False)
    result = sebastian(model, None, retain, settings=settings, seed=1, device="cpu")
    pool = {**layer_weights(model), "fc.bias": model.fc.bias}  # the only bias of a layer that this network has
    total = sum(p.numel() for p in pool.values())
    changed = {name: p != model.get_parameter(name) for name, p in result.named_parameters()}
    assert sum(int(c.sum()) for name, c in changed.items() if name in pool) == round(0.99 * total)
    assert all(not c.any() for name, c in changed.items() if name not in pool)
    kept = torch.cat([pool[name][~changed[name]].abs() for name in pool])
    gone = torch.cat([pool[name][changed[name]].abs() for name in pool])
    assert kept.min() >= gone.max()  # the smallest of the network as a whole, not of each layer


def test_pruned_biases_become_zero_and_others_stay(model, retain, as_bound):
    """The team prunes biases with the weights, and draws weights only."""
    given = copy.deepcopy(model)
    given.fc.bias.data = torch.tensor([1e3, 1e-6, -1e-6])
    settings = as_bound(SebastianSettings, epochs=0.0, half=False)
    result = sebastian(given, None, retain, settings=settings, seed=1, device="cpu")
    assert result.fc.bias.tolist() == [1e3, 0.0, 0.0]


def test_new_weights_are_uniform_within_the_root_of_one_over_fan_in(feed):
    weight = torch.nn.Parameter(torch.full((32, 8, 3, 3), 9.0))
    redraw_uniform(weight, torch.ones_like(weight, dtype=torch.bool), feed)
    bound = (1 / 72) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_entropy_is_in_nats():
    assert entropy(torch.zeros(2, 4)).tolist() == pytest.approx([1.386294] * 2, rel=1e-5)
    assert entropy(torch.tensor([[50.0, 0.0]])).item() == pytest.approx(0.0, abs=1e-5)


def test_entropy_term_counts(model, retain, as_bound, same):
    without, with_term = (
        sebastian(model, None, retain, settings=as_bound(SebastianSettings, entropy_weight=w), seed=1, device="cpu")
        for w in (0.0, 1.0)
    )
    assert not same(without, with_term)


def test_result_has_passed_through_half_precision(model, retain, as_bound):
    result = sebastian(model, None, retain, settings=as_bound(SebastianSettings), seed=1, device="cpu")
    for value in result.state_dict().values():
        if value.is_floating_point():
            assert value.dtype == torch.float32
            assert torch.equal(value, value.half().float())


def test_defaults_are_the_teams():
    settings = SebastianSettings()
    assert (settings.pruned_share, settings.epochs, settings.learning_rate) == (0.99, 3.2, 5e-4)
    assert (settings.weight_decay, settings.class_weight_power, settings.half) == (5e-4, 0.1, True)
