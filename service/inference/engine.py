"""A model version as one process serves it: immutable, built from checked bytes, exchanged as a whole.

Nothing here imports torch, whose import takes a process seconds and hundreds of megabytes: OpenVINO needs none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from service.models.registry import CheckedWeights
from unlearning.faces.decoding import Proportions

if TYPE_CHECKING:
    from service.inference.torch_model import Alone, Pack

Backend = Literal["torch", "openvino"]


class Model(Protocol):
    """What a backend makes of weights."""

    @property
    def dtype(self) -> str:
        """Of the arithmetic: `bfloat16` where the hardware multiplies it, else `float32`."""

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
        dtype: of the arithmetic, as of `Model`.
        temperature: what logits are divided by.
        proportions: what happens to images of other proportions than `image_size`.
    """

    generation: int
    digest: str
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    channels: int
    dtype: str
    temperature: float
    _model: Model = field(repr=False)
    proportions: Proportions = "stretch"

    @classmethod
    def load(
        cls,
        weights: CheckedWeights,
        generation: int,
        device: str = "auto",
        alone: Alone = lambda job: job(),
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
        if backend == "openvino":
            from service.inference.openvino_model import OpenVinoModel

            model: Model = OpenVinoModel(weights)
        else:
            from service.inference.torch_model import TorchModel

            model = TorchModel(weights, device, alone, pack=pack)
        manifest = weights.manifest
        return cls(
            generation, weights.digest, manifest.classes, manifest.image_size, manifest.channels, model.dtype,
            temperature, model, cast(Proportions, manifest.proportions),
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
