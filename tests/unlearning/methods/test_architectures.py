"""Every method on networks it has never heard of: parts are found by role, or the method says why it cannot work."""

import dataclasses

import pytest
import torch
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from unlearning.errors import MethodError
from unlearning.methods import METHODS, unlearn
from unlearning.models import build
from unlearning.procedures.oracles import with_oracles
from unlearning.recipes import Recipe
from unlearning.running import undefined
from unlearning.training import Examples

SHORT = {
    "fanchuan": {"rounds": 1},
    "forget": {"cycle_epochs": (1.0,)},
    "sun": {"first_rates": (1e-3,), "noisy_rates": (1e-4,), "last_rates": (1e-4,)},
    "scrub": {"epochs": 1},
    "scrub_r": {"epochs": 1},
    "amnesiacs": {"epochs": 1.0, "distil_epochs": 1.0},
    "ssd": {},
}


def mobilenet() -> nn.Module:
    return build("mobilenet_v3_small", 3, channels=1)


def vision_transformer() -> nn.Module:
    network = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, dropout=0.1, num_classes=3
    )
    network.conv_proj = nn.Conv2d(1, 16, 8, 8)
    return network


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 8), nn.ReLU(), nn.Linear(8, 3))


def resnet18() -> nn.Module:
    return build("resnet18", 3, channels=1)


class Wandering(nn.Module):
    """Its way depends on its input, so torch.fx cannot follow it."""

    def __init__(self, n_classes: int = 3, channels: int = 1) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(channels, 4, 3, padding=1), nn.Linear(4, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).relu().mean(dim=(2, 3))
        return self.fc(y if y.sum() > 0 else -y)


ARCHITECTURES = {make.__name__: make for make in (resnet18, mobilenet, vision_transformer, perceptron, Wandering)}
NEED_CONVOLUTIONS = {"kookmin", "toshi", "amnesiacs", "seif"}
MATCH_CONFIDENCE = {"dilute", "remix"}  # which needs the graph only if the medians of margins are positive
NEED_THE_GRAPH = {"amnesiacs", "sun", "forget", "cf_k", "eu_k", "oracle_matching"} | MATCH_CONFIDENCE
NOT_DEFINED = {"perceptron": NEED_CONVOLUTIONS, "Wandering": NEED_THE_GRAPH}


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Module]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return {name: make().eval() for name, make in ARCHITECTURES.items()}


@pytest.fixture(scope="module")
def faces() -> Examples:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 1, 32, 32), generator=generator).to(torch.uint8)
    return Examples(images, torch.arange(8) % 3)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.exact])
def test_method_works_or_says_why_not(name, architecture, networks, faces):
    recipe = Recipe("strange", "resnet18", image_size=(32, 32), dtype="float32")
    settings = METHODS[name].settings(**SHORT.get(name, {"epochs": 1.0}))
    if name == "toshi":
        settings = dataclasses.replace(settings, procedure="transpose")
    network = networks[architecture]

    def run() -> nn.Module:
        forget, retain = faces.subset(range(3)), faces.subset(range(3, 8))
        if METHODS[name].needs_oracles:
            forget = with_oracles(forget, [[1.0, -2.0, 0.5]])
        return unlearn(name, network, forget, retain, recipe=recipe, seed=1, device="cpu", settings=settings).model

    if name in undefined(network, recipe) and name not in MATCH_CONFIDENCE:
        with pytest.raises(MethodError, match=r"convolution|torch\.fx"):
            run()
        return
    result = run()
    assert type(result) is type(network)
    changed = [not torch.equal(p, q) for p, q in zip(result.parameters(), network.parameters(), strict=True)]
    assert any(changed) or name == "ssd"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_not_defined_is_known_before_it_runs(architecture, networks):
    found = undefined(networks[architecture], Recipe("strange", "resnet18", image_size=(32, 32)))
    assert found.keys() == NOT_DEFINED.get(architecture, set())
    assert not any(METHODS[name].exact for name in found)


def test_exact_retraining_needs_nothing_of_a_network(networks, faces):
    recipe = Recipe("short", f"{__name__}:Wandering", image_size=(32, 32), epochs=1)
    unlearn("retrain", networks["Wandering"], None, faces, recipe=recipe, seed=1, device="cpu")


def test_single_image_to_forget(networks, faces):
    """Small maps and a forget set of one: a sentence where the batch norms cannot work, a result where they can."""
    recipe = Recipe("strange", "resnet18", image_size=(32, 32), dtype="float32")
    forget, retain = faces.subset([0]), faces.subset(range(1, 8))
    with pytest.raises(MethodError, match="Expected more than one image a batch"):
        unlearn("gradient_ascent", networks["resnet18"], forget, retain, recipe=recipe, seed=1, device="cpu")
    with pytest.raises(MethodError, match="Expected more than one image a batch"):  # its gradients, in training mode
        unlearn("kookmin", networks["resnet18"], forget, retain, recipe=recipe, seed=1, device="cpu")
    settings = METHODS["kookmin"].settings(epochs=1.0, gradients_in="eval")
    unlearn("kookmin", networks["resnet18"], forget, retain, recipe=recipe, seed=1, device="cpu", settings=settings)
