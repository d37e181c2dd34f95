from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from service.serving.folding import PackedConv2d, fold_norms, pack
from unlearning.models import build, to_inputs

SIZES = {"eyes_resnet": (112, 92)}


def images_for(architecture: str, n: int = 5) -> torch.Tensor:
    size = SIZES.get(architecture, (64, 64))
    return torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def trained(architecture: str) -> nn.Module:
    """A model whose norms have statistics of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(architecture, 4, channels=3, width=4).train()
        with torch.no_grad():
            for _ in range(3):
                model(to_inputs(images_for(architecture, 8)))
    return model.requires_grad_(False).eval()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
@pytest.mark.parametrize("architecture", ["small_resnet", "eyes_resnet", "resnet18", "mobilenet_v3_small"])
def test_a_packed_model_computes_what_the_model_does(architecture, dtype, tolerance):
    model, inputs = trained(architecture), to_inputs(images_for(architecture))
    with torch.inference_mode():
        expected = model(inputs)
        packed = fold_norms(copy.deepcopy(model)).to(dtype).to(memory_format=torch.channels_last)
        packed = pack(packed, inputs[:2].to(dtype))
        found = packed(inputs.to(dtype)).float()
        alone = torch.cat([packed(inputs[i : i + 1].to(dtype)) for i in range(len(inputs))]).float()
    scale = float(expected.abs().max())
    np.testing.assert_allclose(found, expected, atol=tolerance * scale)
    np.testing.assert_allclose(alone, expected, atol=tolerance * scale)
    assert any(isinstance(module, PackedConv2d) for module in packed.modules())


def test_norms_behind_convolutions_are_gone():
    folded = fold_norms(trained("resnet18"))
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_model_whose_way_depends_on_its_input_stays_as_it_is():
    class Undecided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    model = Undecided().eval()
    assert fold_norms(model) is model


@pytest.mark.parametrize("options", [{"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}])
def test_a_convolution_that_does_not_fit_stays_as_it_is(options):
    model = nn.Sequential(nn.Conv2d(3, 4, 3, **options), nn.Conv2d(4, 4, 3)).requires_grad_(False).eval()
    inputs = torch.rand(2, 3, 8, 8)
    expected = model(inputs)
    packed = pack(model, inputs)
    assert [type(module) for module in packed] == [nn.Conv2d, PackedConv2d]
    with torch.inference_mode():
        np.testing.assert_allclose(packed(inputs), expected, atol=1e-5)


def test_a_packed_model_goes_without_a_collection():
    model = pack(fold_norms(trained("resnet18")), to_inputs(images_for("resnet18")))
    gone = [weakref.ref(module) for module in model.modules()]
    gc.disable()
    try:
        del model
        assert not [reference for reference in gone if reference() is not None]
    finally:
        gc.enable()


def test_tracing_is_left_to_whoever_can_be_alone():
    """While a model is traced no other one of the process can compute; so it happens where none does."""
    other, inputs = trained("small_resnet"), to_inputs(images_for("small_resnet"))
    asked = []

    class Tracing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return other(inputs) + x

    def alone(job):
        asked.append(job)
        return job()

    with pytest.raises(NameError, match="not installed"):
        torch.fx.Tracer().trace(Tracing())
    folded = fold_norms(trained("resnet18"), alone)
    assert len(asked) == 1
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]
