from __future__ import annotations

import copy
import gc
import weakref

import numpy as np
import pytest
import structlog
import torch
from torch import nn

from service.inference.folding import fold_norms
from service.serving.speedups import packed_weights
from service.serving.speedups.packed_weights import PackedConv2d, pack
from tests.service.serving.networks import images_for, trained
from unlearning.models import to_inputs


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


@pytest.fixture
def no_operator(monkeypatch):
    """As in a PyTorch that has the private operator no more."""

    def missing():
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_convolution_pointwise'")

    monkeypatch.setattr(packed_weights, "_operators", missing)
    packed_weights._can_pack.cache_clear()
    yield
    packed_weights._can_pack.cache_clear()


@pytest.mark.usefixtures("no_operator")
def test_without_the_private_operator_the_model_stays_as_it_is_and_a_line_says_so():
    model, inputs = trained("small_resnet"), to_inputs(images_for("small_resnet"))
    with torch.inference_mode(), structlog.testing.capture_logs() as lines:
        expected = model(inputs)
        assert pack(model, inputs) is model
        assert pack(model, inputs) is model
        assert torch.equal(model(inputs), expected)
    assert lines == [
        {"event": "speedup.unavailable", "name": "packed_weights", "error": "AttributeError", "log_level": "warning"}
    ]
