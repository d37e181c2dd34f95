"""Convolutions as matrix products are torch's convolutions, sum by sum."""

import copy

import pytest
import torch
from torch import nn

from unlearning import convolution
from unlearning.convolution import small_maps_as_products
from unlearning.models import build

CPU = torch.device("cpu")


def gradients(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Output and gradients of inputs and parameters, for a loss that weighs every output differently."""
    x = x.clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float32).view(y.shape)
    (y.float() * weights).sum().backward()
    return y.detach(), x.grad, *(p.grad for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": (2, 3), "stride": (1, 2), "padding": (0, 2)},
        {"kernel_size": 4, "stride": 3},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_outputs_and_gradients_are_torch_s(options, dtype):
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Conv2d(8, 64, **options).to(dtype).to(memory_format=torch.channels_last)
    x = torch.randn(3, 8, 6, 5, generator=generator).to(dtype)
    twin = copy.deepcopy(layer)
    with small_maps_as_products(layer, CPU):
        ours = gradients(layer, x)
    rounding = 1e-5 if dtype == torch.float32 else 2e-2
    for found, expected in zip(ours, gradients(twin, x), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding * float(expected.abs().max()))


def test_under_autocast_products_are_of_rounded_numbers():
    layer = nn.Conv2d(8, 64, 3, padding=1)
    with small_maps_as_products(layer, CPU), torch.autocast("cpu", torch.bfloat16):
        y = layer(torch.ones(2, 8, 3, 3))
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_only_small_maps_of_plain_layers_are_taken(monkeypatch):
    taken = []
    product = convolution._Product.apply
    monkeypatch.setattr(convolution._Product, "apply", lambda *given: taken.append(given) or product(*given))
    model = build("resnet18", 2, channels=1)
    grouped, holed = nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 64, 2, dilation=2)
    with small_maps_as_products(model, CPU), small_maps_as_products(nn.ModuleList([grouped, holed]), CPU):
        grouped(torch.ones(1, 8, 4, 4)), holed(torch.ones(1, 8, 4, 4))
        assert not taken
        model.eval()(torch.ones(30, 1, 64, 64))
    assert {len(given[1]) for given in taken} == {256, 512}  # the last two stages
    assert len(taken) == 10
    taken.clear()
    model(torch.ones(2, 1, 64, 64))  # after the block they are torch's again
    assert not taken


def test_on_other_devices_nothing_changes():
    layer = nn.Conv2d(8, 64, 3)
    with small_maps_as_products(layer, torch.device("cuda")):
        assert "_conv_forward" not in vars(layer)
