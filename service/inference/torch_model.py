"""Logits by PyTorch: the reference, and the only way to a GPU. Tested in `tests/service/inference/test_engine.py`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx import Graph

from service.inference.folding import fold_norms
from service.models.building import build_model
from service.models.registry import CheckedWeights
from unlearning.devices import resolve_device, resolve_dtype
from unlearning.models import to_inputs

PACKED_FOR = 8  # images: what a busy process computes together

Alone = Callable[[Callable[[], Graph]], Graph]
Pack = Callable[[nn.Module, torch.Tensor], nn.Module]


class TorchModel:
    """Logits of one model version, in the arithmetic the device is good at."""

    def __init__(self, weights: CheckedWeights, device: str | torch.device, alone: Alone, *, pack: Pack | None) -> None:
        manifest, device = weights.manifest, resolve_device(device)
        dtype = resolve_dtype("auto", device)
        self._device, self._dtype = device, dtype
        self._model = fold_norms(build_model(weights), alone).to(device, dtype).to(memory_format=torch.channels_last)
        if pack is not None and device.type == "cpu":
            shape = (PACKED_FOR, manifest.channels, *manifest.image_size)
            self._model = pack(self._model, to_inputs(torch.zeros(shape, dtype=torch.uint8), dtype))
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            # A stream of its own: not behind what this process does besides, such as loading the next version.
            self._stream = torch.cuda.Stream(device)
            torch.cuda.synchronize(device)  # the weights are there before that stream reads them

    @property
    def dtype(self) -> str:
        """As `service.inference.engine.Model`."""
        return str(self._dtype).removeprefix("torch.")

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `service.inference.engine.Model`."""
        with self._on_stream():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(self._device)
            logits: NDArray[np.float32] = self._model(to_inputs(pixels, self._dtype)).float().cpu().numpy()
        return logits

    def _on_stream(self) -> AbstractContextManager[object]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)
