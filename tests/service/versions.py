"""Tiny model versions for tests: random weights whose answers differ by seed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from service.context import Context
from service.inference.engine import Engine
from service.inference.network import network_for
from service.models import registry
from service.models.building import build_model
from service.models.manifest import Manifest
from service.serving.speedups.packed_weights import pack
from unlearning.models import build, save_weights, to_inputs

CLASSES = ("glasses", "none", "sun glasses")
SIZE = (16, 16)


def manifest(seed: int = 0, **changes: object) -> Manifest:
    values = {
        "architecture": "small_resnet", "width": 4, "channels": 3, "image_size": SIZE, "classes": CLASSES, "seed": seed,
        "recipe": "tiny", "recipe_digest": "0" * 64, "data_manifest_digest": "1" * 64, "versions": {"torch": "2"},
    }  # fmt: skip
    return Manifest(**{**values, **changes})


def write_weights(path: Path, seed: int, *, width: int = 4, n_classes: int = len(CLASSES)) -> Path:
    """Weights whose answers depend on the image: the norms' statistics are set, not left at 0 and 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build("small_resnet", n_classes, channels=3, width=width)
        model.train()
        for _ in range(10):
            model(to_inputs(torch.randint(0, 256, (16, 3, *SIZE), dtype=torch.uint8)))
        model.fc.weight.data.mul_(8)
    save_weights(model, path)
    return path


def add_version(context: Context, seed: int) -> str:
    """A candidate in the registry; gives its digest."""
    path = context.settings.home / f"seed-{seed}.safetensors"
    context.settings.home.mkdir(parents=True, exist_ok=True)
    weights, network = write_weights(path, seed), network_for(context, manifest(seed))
    digest = registry.add(context, weights, manifest(seed), network=network)
    path.unlink()
    return digest


def engine_of(context: Context, digest: str, generation: int = 1) -> Engine:
    return Engine.load(registry.load_checked(context, digest), generation, "cpu", pack=pack)


def reference_probabilities(context: Context, digest: str, images: np.ndarray) -> np.ndarray:
    """The naive twin of the serving engine: float32, one image at a time; float32 (n, n_classes)."""
    model = build_model(registry.load_checked(context, digest))
    rows = []
    for image in images:
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None]
        rows.append(model(to_inputs(pixels)).softmax(1)[0].numpy())
    return np.stack(rows)


def image(seed: int, *, size: tuple[int, int] = SIZE, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """File of a random image, (height, width) in pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind)
    return stream.getvalue()


def pixels_of(seed: int) -> np.ndarray:
    """Pixels of `image(seed)`: uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
