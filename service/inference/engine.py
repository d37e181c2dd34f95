"""A model version as one process serves it: immutable, built from checked bytes, exchanged as a whole."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Graph

from service.inference.folding import fold_norms
from service.models.building import build_model
from service.models.registry import CheckedWeights
from unlearning.devices import resolve_device, resolve_dtype
from unlearning.faces.decoding import Proportions
from unlearning.models import to_inputs

PACKED_FOR = 8  # images: what a busy process computes together

Backend = Literal["torch", "openvino"]
Pack = Callable[[nn.Module, torch.Tensor], nn.Module]


class Model(Protocol):
    """What a backend makes of weights."""

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits `(n, n_classes)`, float32, of images `(n, height, width, channels)`, uint8."""


@dataclass(frozen=True)
class Engine:
    """Predicts with the weights of one model version.

    Attributes:
        generation: growing number under which the version was deployed.
        digest: SHA-256 of the weights file: the version's name.
        classes: names in the order of the probabilities.
        image_size: (height, width) in pixels of the images it takes.
        channels: 1 (grey) or 3 (colour).
        dtype: of the arithmetic: bfloat16 where the hardware multiplies it, else float32.
        temperature: what logits are divided by.
        proportions: what happens to images of other proportions than `image_size`.
    """

    generation: int
    digest: str
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    channels: int
    dtype: torch.dtype
    temperature: float
    _model: Model = field(repr=False)
    proportions: Proportions = "stretch"

    @classmethod
    def load(
        cls,
        weights: CheckedWeights,
        generation: int,
        device: str | torch.device = "auto",
        alone: Callable[[Callable[[], Graph]], Graph] = lambda job: job(),
        *,
        backend: Backend = "torch",
        temperature: float = 1.0,
        pack: Pack | None = None,
    ) -> Engine:
        """Engine of a model version, in the arithmetic the device is good at.

        Args:
            device: as `unlearning.devices.resolve_device`; OpenVINO serves on the CPU.
            alone: runs a short job while no other engine of this process computes; see `fold_norms`.
            temperature: logits are divided by it before they become probabilities.
            pack: lays weights out for the CPU, once; see `service.serving.speedups.packed_weights`.

        Raises:
            WeightsError: the bytes are no safetensors file, or of another architecture than the manifest says.
        """
        where = resolve_device(device if backend == "torch" else "cpu")
        dtype = resolve_dtype("auto", where)
        if backend == "openvino":
            from service.inference.openvino_model import OpenVinoModel

            model: Model = OpenVinoModel(weights, dtype)
        else:
            model = TorchModel(weights, where, dtype, alone, pack=pack)
        manifest = weights.manifest
        return cls(
            generation, weights.digest, manifest.classes, manifest.image_size, manifest.channels, dtype, temperature,
            model, cast(Proportions, manifest.proportions),
        )  # fmt: skip

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the images it takes."""
        return (*self.image_size, self.channels)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits `(n, n_classes)` of images `(n, height, width, channels)`."""
        return self._model(images)

    def predict(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Probabilities `(n, n_classes)` of images `(n, height, width, channels)`."""
        logits = self._model(images) / np.float32(self.temperature)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.divide(powers, powers.sum(axis=1, keepdims=True), dtype=np.float32)


class TorchModel:
    """Logits by PyTorch: the reference, and the only way to a GPU."""

    def __init__(
        self,
        weights: CheckedWeights,
        device: torch.device,
        dtype: torch.dtype,
        alone: Callable[[Callable[[], Graph]], Graph],
        *,
        pack: Pack | None,
    ) -> None:
        self._device, self._dtype, manifest = device, dtype, weights.manifest
        self._model = fold_norms(build_model(weights), alone).to(device, dtype).to(memory_format=torch.channels_last)
        if pack is not None and device.type == "cpu":
            shape = (PACKED_FOR, manifest.channels, *manifest.image_size)
            self._model = pack(self._model, to_inputs(torch.zeros(shape, dtype=torch.uint8), dtype))
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # A stream of its own: not behind what this process does besides, such as loading the next version.
            self._stream = torch.cuda.Stream(device)
            torch.cuda.synchronize(device)  # the weights are there before that stream reads them

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `Model`."""
        with self._on_stream():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(self._device)
            logits: NDArray[np.float32] = self._model(to_inputs(pixels, self._dtype)).float().cpu().numpy()
        return logits

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
