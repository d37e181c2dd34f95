"""What every contender computes: JPEG bytes to pixels, pixels to probabilities, probabilities to an answer."""

from __future__ import annotations

import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from PIL import Image

from service.inference.engine import Engine
from service.models.manifest import Manifest
from service.models.registry import CheckedWeights
from service.serving.speedups.packed_weights import pack
from service.settings import Settings
from unlearning.devices import resolve_dtype
from unlearning.models import build, to_inputs

CLASSES = tuple(f"age_{group}" for group in range(10))
ARCHITECTURE = "resnet18"
WARM_UP = (1, 2, 4, 8, 16, 32, 64)  # batch sizes
Shape = tuple[int, int, int]
"""(height, width, channels) of images."""


def manifest(shape: Shape, seed: int = 0) -> Manifest:
    """What the registry is told of weights for such images."""
    return Manifest(
        architecture=ARCHITECTURE, width=64, channels=shape[2], image_size=shape[:2], classes=CLASSES, seed=seed,
        recipe="benchmark", recipe_digest="0" * 64, data_manifest_digest="0" * 64, versions={},
    )  # fmt: skip


class Model:
    """Plain eager torch: bfloat16 where the hardware multiplies it, channels-last, one thread.

    Args:
        weights: safetensors file.
        shape: (height, width, channels) of the images.
    """

    def __init__(self, weights: Path, shape: Shape) -> None:
        torch.set_num_threads(1)
        self.shape = shape
        self.dtype = resolve_dtype("auto", torch.device("cpu"))
        model = build(ARCHITECTURE, len(CLASSES), channels=shape[2])
        model.load_state_dict(safetensors.torch.load_file(weights))
        self._model = model.requires_grad_(False).eval().to(self.dtype).to(memory_format=torch.channels_last)
        for size in WARM_UP:
            self.predict(np.zeros((size, *shape), np.uint8))

    @classmethod
    def from_environment(cls) -> Model:
        """As `serving.py` asks for it: CONTENDER_WEIGHTS and CONTENDER_SHAPE (`64x64x3`)."""
        height, width, channels = (int(part) for part in os.environ["CONTENDER_SHAPE"].split("x"))
        return cls(Path(os.environ["CONTENDER_WEIGHTS"]), (height, width, channels))

    def engine(self, backend: str = "torch") -> Engine:
        """The same weights as our service computes them, warmed up."""
        chosen: dict[str, Any] = {} if backend == "torch" else {"backend": backend}
        content = Path(os.environ["CONTENDER_WEIGHTS"]).read_bytes()
        found = Engine.load(CheckedWeights("0" * 64, manifest(self.shape), content), 1, pack=pack, **chosen)
        for size in WARM_UP:
            found.predict(np.zeros((size, *self.shape), np.uint8))
        return found

    @torch.inference_mode()
    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities float32 `(n, n_classes)` of images uint8 `(n, height, width, channels)`."""
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
        return self._model(to_inputs(pixels, self.dtype)).float().softmax(dim=1).numpy()

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """Pixels `(height, width, channels)` of a JPEG file."""
        return self.pixels(Image.open(io.BytesIO(content)))

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Pixels `(height, width, channels)` in the model's size and colours."""
        height, width, channels = self.shape
        mode = "L" if channels == 1 else "RGB"
        if image.mode != mode:
            image = image.convert(mode)
        if image.size != (width, height):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return np.array(image).reshape(self.shape)


def answer(probabilities: NDArray[np.float32]) -> dict[str, Any]:
    """Label and probabilities of one image, as every contender answers."""
    values = [round(value, 6) for value in probabilities.tolist()]
    return {"label": CLASSES[int(probabilities.argmax())], "probabilities": dict(zip(CLASSES, values, strict=True))}


def has_openvino() -> bool:
    """Whether our service can compute with OpenVINO here."""
    return "backend" in Settings.model_fields and importlib.util.find_spec("openvino") is not None
