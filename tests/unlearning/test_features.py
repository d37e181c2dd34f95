"""Penultimate features of any network whose logits a linear layer gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unlearning.errors import FeaturesError
from unlearning.features import features_and_logits
from unlearning.models import build
from unlearning.training import logits


def images(side: int = 64, channels: int = 1, n: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)


class Untraceable(nn.Module):
    """Its path depends on the data, a hidden linear layer comes after the classifier, and there are two of them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.body = nn.Linear(64, 8)
        self.aside = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(dim=1)[:, ::8, ::8].flatten(1)
        x = self.body(x if float(x.sum()) > 1e9 else x.tanh())
        found = self.head(x)
        self.aside(x)
        return found


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * self.head(x.mean(dim=1)[:, ::8, ::8].flatten(1))


@pytest.mark.parametrize(
    ("architecture", "classifier"),
    [
        ("small_resnet", "fc"),
        ("eyes_resnet", "fc"),
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("densenet121", "classifier"),
        ("timm:test_resnet", "fc"),
        ("timm:test_vit", "head"),
    ],
)
def test_the_classifier_makes_the_logits_of_the_features(architecture: str, classifier: str) -> None:
    if architecture.startswith("timm:"):
        pytest.importorskip("timm", reason="Needs timm: pip install 'expunge[timm]'.")
    torch.manual_seed(0)
    model = build(architecture, 3).eval()
    shown = images(160 if architecture == "timm:test_vit" else 64)
    features, found = features_and_logits(model, shown)
    head = model.get_submodule(classifier)
    assert isinstance(head, nn.Linear)
    assert features.dtype == found.dtype == np.float32
    assert features.shape == (5, head.in_features)
    again = nn.functional.linear(torch.from_numpy(features), head.weight, head.bias).detach().numpy()
    np.testing.assert_allclose(again, found, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found, logits(model, shown), rtol=1e-4, atol=1e-5)


def test_a_network_that_cannot_be_traced_has_features_too() -> None:
    model = Untraceable().train()
    features, found = features_and_logits(model, images())
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())
    again = nn.functional.linear(torch.from_numpy(features), model.head.weight, model.head.bias).detach().numpy()
    np.testing.assert_allclose(again, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("model", [build("squeezenet1_1", 3), Scaled()], ids=["convolution", "scaled"])
def test_a_network_whose_logits_no_linear_layer_gives_is_named(model: nn.Module) -> None:
    with pytest.raises(FeaturesError, match=rf"linear layers that {type(model).__name__} calls"):
        features_and_logits(model, images())
    assert not any(module._forward_hooks for module in model.modules())


def test_batches_of_a_pass_do_not_matter() -> None:
    torch.manual_seed(0)
    model, shown = build("small_resnet", 3).eval(), images(n=300)
    features, found = features_and_logits(model, shown)
    one, other = features_and_logits(model, shown[290:])
    np.testing.assert_allclose(features[290:], one, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[290:], other, rtol=1e-4, atol=1e-5)
