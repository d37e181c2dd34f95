from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from service.inference.folding import fold_norms
from tests.service.serving.networks import images_for, trained
from unlearning.models import to_inputs


@pytest.mark.parametrize("architecture", ["small_resnet", "eyes_resnet", "resnet18", "mobilenet_v3_small"])
def test_a_folded_model_computes_what_the_model_does(architecture):
    model, inputs = trained(architecture), to_inputs(images_for(architecture))
    with torch.inference_mode():
        expected = model(inputs)
        found = fold_norms(copy.deepcopy(model))(inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5 * float(expected.abs().max()))


def test_norms_behind_convolutions_are_gone():
    folded = fold_norms(trained("resnet18"))
    assert not [module for module in folded.modules() if isinstance(module, nn.BatchNorm2d)]


def test_a_model_whose_way_depends_on_its_input_stays_as_it_is():
    class Undecided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    model = Undecided().eval()
    assert fold_norms(model) is model


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
