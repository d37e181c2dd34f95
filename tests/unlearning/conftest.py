"""One small setup for all methods: a recipe of a moment, a model trained by it, whom to forget, the rest to retain."""

import pytest
import torch

from unlearning.procedures.feeding import Feed, feeding
from unlearning.procedures.settings import Settings
from unlearning.recipes import Recipe
from unlearning.training import Examples, train

torch.set_num_threads(1)  # as all training runs here; threaded passes of torch 2.14 crashed on an AMD EPYC

N_CLASSES = 3
RECIPE = Recipe(
    "tiny",
    "small_resnet",
    image_size=(16, 16),
    width=4,
    epochs=8,
    batch_size=16,
    learning_rate=0.05,
    shift=1,
    flip=True,
    dtype="float32",
)


def make_examples(n: int, seed: int, *, channels: int = 1, side: int = 16, n_classes: int = N_CLASSES) -> Examples:
    """Draws noisy images whose brightness tells the class, mostly."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % n_classes
    noise = torch.randint(-40, 41, (n, channels, side, side), generator=generator)
    brightness = 50 + 150 * labels / (n_classes - 1) + 30 * torch.randn(n, generator=generator)
    images = brightness.long()[:, None, None, None] + noise
    return Examples(images.clamp(0, 255).to(torch.uint8), labels)


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    return RECIPE


@pytest.fixture(scope="session")
def retain() -> Examples:
    return make_examples(40, seed=1)


@pytest.fixture(scope="session")
def forget() -> Examples:
    return make_examples(10, seed=2)


@pytest.fixture(scope="session")
def model(recipe, retain, forget) -> torch.nn.Module:
    everyone = Examples(torch.cat([retain.images, forget.images]), torch.cat([retain.labels, forget.labels]))
    return train(recipe, everyone, n_classes=N_CLASSES, seed=0, device="cpu").model


@pytest.fixture(scope="session")
def as_bound(recipe):
    """Gives a function that makes settings bound to the recipe."""

    def make(settings_type: type[Settings], **options) -> Settings:
        return settings_type(recipe=recipe, **options)

    return make


@pytest.fixture
def feed(recipe) -> Feed:
    with feeding(Settings(recipe=recipe), seed=5, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="session")
def same():
    """Gives a function that says whether two models have the same parameters and buffers, bit for bit."""

    def compare(one: torch.nn.Module, other: torch.nn.Module) -> bool:
        left, right = one.state_dict(), other.state_dict()
        return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)

    return compare
