"""Roles are found on networks that name their parts as they like."""

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer

from unlearning.errors import MethodError
from unlearning.models import build
from unlearning.procedures.modules import (
    convolution_weights,
    layer_weights,
    layout,
    norm_parameters,
    reset,
    reset_all,
)


def on_paper(name: str) -> nn.Module:
    with torch.device("meta"):
        return models.get_model(name, weights=None)


class Oddly(nn.Module):
    """Declares its parts in another order than data meets them, and names them misleadingly."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Conv2d(1, 4, 3, padding=1)
        self.unused = nn.Linear(2, 2)
        self.classifier = nn.GroupNorm(2, 4)
        self.conv1 = nn.Linear(4, 3)
        self.downsample = nn.Conv2d(4, 4, 3, padding=1)
        self.body = nn.Conv2d(4, 4, 1)
        self.body2 = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        x = self.classifier(self.fc(x))
        x = self.body2(self.downsample(x).relu()) + self.body(x)
        return self.conv1(x.mean((2, 3)))


def test_roles_follow_the_data_not_the_names():
    parts = layout(Oddly())
    assert parts.first_convolution == "fc"
    assert parts.classifier == "conv1"
    assert parts.norms == ("classifier",)
    assert parts.shortcuts == ("body",)
    assert parts.blocks == (("fc", "classifier"), ("downsample", "body2", "body"))
    assert parts.head == ("conv1",)
    assert "unused" not in parts.layers


def test_small_resnet():
    parts = layout(build("small_resnet", 2, channels=1, width=4))
    assert parts.first_convolution == "stem"
    assert parts.classifier == "fc"
    assert parts.shortcuts == ("stages.1.shortcut.0", "stages.2.shortcut.0")
    assert len(parts.blocks) == 4
    assert parts.head == ("fc",)


@pytest.mark.parametrize(
    ("name", "first", "classifier", "n_norms", "shortcuts", "n_blocks"),
    [
        ("resnet18", "conv1", "fc", 20, tuple(f"layer{i}.0.downsample.0" for i in (2, 3, 4)), 9),
        ("mobilenet_v3_small", "features.0.0", "classifier.3", 34, (), 27),
        ("vgg11", "features.0", "classifier.6", 0, (), 10),
        ("squeezenet1_0", "features.0", "classifier.1", 0, (), 17),
        ("vit_b_16", "conv_proj", "heads.head", 25, (), 25),
    ],
)
def test_torchvision_classifiers(name, *, first, classifier, n_norms, shortcuts, n_blocks):
    parts = layout(on_paper(name))
    assert parts.first_convolution == first
    assert parts.classifier == classifier
    assert len(parts.norms) == n_norms
    assert parts.shortcuts == shortcuts
    assert len(parts.blocks) == n_blocks


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "vgg11", "densenet121"])
def test_blocks_and_head_hold_every_parameter_once(name):
    network = on_paper(name)
    parts = layout(network)
    named = [module for block in parts.blocks for module in block] + list(parts.head)
    assert len(named) == len(set(named))
    n_held = sum(p.numel() for module in named for p in network.get_submodule(module).parameters())
    assert n_held == sum(p.numel() for p in network.parameters())


def test_layout_leaves_the_network_alone():
    network = build("small_resnet", 2, channels=1, width=4)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    layout(network)
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_network_without_convolution_is_refused_where_one_is_needed():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    assert layout(network).classifier == "1"
    with pytest.raises(MethodError, match="Expected a network with a convolution"):
        _ = layout(network).first_convolution
    with pytest.raises(MethodError, match="Expected a network with convolutions, but Sequential has none"):
        convolution_weights(network)


def test_network_without_layers_is_refused():
    with pytest.raises(MethodError, match="Expected a convolution or a linear layer in Sequential"):
        layout(nn.Sequential(nn.ReLU()))


def test_network_that_cannot_be_traced_is_refused():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(MethodError, match=r"torch\.fx can trace, but Branching stopped it"):
        layout(Branching())


def test_norm_parameters_and_layer_weights_share_nothing():
    network = on_paper("vit_b_16")
    norms, weights = norm_parameters(network), layer_weights(network)
    assert "encoder.ln.bias" in norms
    assert "encoder.layers.encoder_layer_0.self_attention.in_proj_weight" in weights
    assert not norms & weights.keys()


def test_reset_draws_anew_from_torchs_own_distribution():
    layer = nn.Conv2d(8, 8, 3)
    before = layer.weight.detach().clone()
    torch.manual_seed(1)
    reset(layer)
    assert not torch.equal(layer.weight, before)
    assert layer.weight.abs().max() <= 1 / (8 * 9) ** 0.5
    with pytest.raises(MethodError, match="ReLU has no reset_parameters"):
        reset(nn.ReLU())


def test_reset_all_leaves_no_parameter_as_it_was():
    network = VisionTransformer(
        image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=8, mlp_dim=8, num_classes=3
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7.0)
    reset_all(network)
    assert all((parameter != 7.0).all() for parameter in network.parameters())
