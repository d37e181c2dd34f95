"""Descent over flat weights takes the very steps that torch's own optimisers take, tensor by tensor."""

import copy

import pytest
import torch
from torch import nn

from unlearning import descent
from unlearning.descent import SGD, Adam, FlatWeights
from unlearning.errors import RecipeError
from unlearning.models import build

INPUTS = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build("small_resnet", 3, width=4).to(memory_format=torch.channels_last).train()


def groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """The naive twin's parameters: decay on kernels and matrices only."""
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]


@pytest.mark.parametrize(
    ("ours", "twin"),
    [
        (
            lambda flat: SGD(flat, momentum=0.9, weight_decay=0.01),
            lambda model: torch.optim.SGD(groups(model, 0.01), lr=1.0, momentum=0.9, nesterov=True),
        ),
        (
            lambda flat: SGD(flat, momentum=0.0, weight_decay=0.0),
            lambda model: torch.optim.SGD(groups(model, 0.0), lr=1.0),
        ),
        (
            lambda flat: Adam(flat, momentum=0.9, weight_decay=0.01),
            lambda model: torch.optim.Adam(groups(model, 0.01), lr=1.0, betas=(0.9, 0.999)),
        ),
    ],
    ids=["nesterov", "plain", "adam"],
)
@pytest.mark.parametrize("block", [1 << 16, 100])
def test_steps_are_those_of_torch(model, ours, twin, block, monkeypatch):
    monkeypatch.setattr(descent, "_BLOCK", block)
    other = copy.deepcopy(model)
    flat = FlatWeights(model)
    optimiser, theirs = ours(flat), twin(other)
    for learning_rate in (0.001, 0.01, 0.005):
        model(INPUTS).square().sum().backward()
        optimiser.step(learning_rate)
        for group in theirs.param_groups:
            group["lr"] = learning_rate
        theirs.zero_grad()
        other(INPUTS).square().sum().backward()
        theirs.step()
    for (name, value), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_flattening_changes_no_output(model):
    before = model.eval()(INPUTS)
    flat = FlatWeights(model)
    assert torch.equal(model(INPUTS), before)
    assert flat.values.numel() == sum(p.numel() for p in model.parameters())
    assert flat.n_decayed == sum(p.numel() for p in model.parameters() if p.ndim > 1)


def test_release_gives_each_parameter_memory_of_its_own(model):
    flat = FlatWeights(model)
    model(INPUTS).sum().backward()
    before = [p.detach().clone() for p in model.parameters()]
    flat.release()
    flat.values.zero_()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(p.grad is None for p in model.parameters())
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == len(before)


def test_frozen_parameters_stay_out(model):
    model.stem.requires_grad_(False)
    stem = model.stem.weight
    pointer = stem.data_ptr()
    flat = FlatWeights(model)
    assert flat.values.numel() == sum(p.numel() for p in model.parameters()) - stem.numel()
    assert stem.data_ptr() == pointer


def test_weights_that_are_not_float32_are_refused(model):
    with pytest.raises(RecipeError, match="float32"):
        FlatWeights(model.to(torch.bfloat16))


@pytest.mark.parametrize("optimiser", [SGD, Adam])
@pytest.mark.parametrize("block", [1 << 16, 100])
def test_rounded_kernels_take_the_steps_that_autocast_takes(model, optimiser, block, monkeypatch):
    monkeypatch.setattr(descent, "_BLOCK", block)
    other = copy.deepcopy(model)
    rounded, plain = FlatWeights(model, dtype=torch.bfloat16), FlatWeights(other)
    ours, twin = (optimiser(flat, momentum=0.9, weight_decay=0.01) for flat in (rounded, plain))
    assert model.stem.weight.dtype == torch.bfloat16
    assert model.norm.weight.dtype == torch.float32
    for _ in range(3):
        for network, taker in ((model, ours), (other, twin)):
            with torch.autocast("cpu", torch.bfloat16):
                outputs = network(INPUTS)
            outputs.float().square().sum().backward()
            taker.step(0.01)
    rounded.release()
    plain.release()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))
    assert all(p.dtype == torch.float32 for p in model.parameters())
