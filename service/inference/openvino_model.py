"""Logits by OpenVINO, which computes convolutions on CPUs faster than PyTorch does; needs the extra `openvino`.

The weights are those of the safetensors file whose digest was checked, and of no other file: no second format of them
is written or read. A network is converted once a process, from made-up weights, and each version's are put in their
places; so a swap costs no conversion, and the converted network remembers nobody. ResNets and most other convolutional
networks can be served so; where the conversion takes weights apart (attention), loading says so and nothing is served.

The processes of a service share the cores, so each gets one thread, and none is pinned: OpenVINO would pin all of them
to the same core.
"""

from __future__ import annotations

import warnings
from functools import cache, lru_cache
from threading import Lock

import numpy as np
import openvino as ov
import safetensors
import safetensors.numpy
import torch
from numpy.typing import NDArray
from openvino import properties
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from openvino.properties import hint
from torch import Tensor, nn

from service.errors import EngineError, WeightsError
from service.models.registry import CheckedWeights
from unlearning.errors import UnlearningError
from unlearning.factories import is_factory, require_source
from unlearning.models import build_empty, to_inputs

_PREFIX = "self.model."  # of the weights' names in a converted network


class OpenVinoModel:
    """Logits of one model version, to be called by one thread at a time.

    OpenVINO itself would give two threads each other's answers, without an error.
    """

    def __init__(self, weights: CheckedWeights, dtype: torch.dtype) -> None:
        precision = ov.Type.bf16 if dtype == torch.bfloat16 else ov.Type.f32
        network = _filled(weights)
        options = {
            hint.enable_cpu_pinning: False,
            hint.inference_precision: precision,
            properties.inference_num_threads: 1,
            properties.num_streams: 1,
        }
        self._is_computing = Lock()
        self._request = _core().compile_model(network, "CPU", options).create_infer_request()

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See `service.inference.engine.Model`.

        Raises:
            EngineError: another thread is computing with it.
        """
        if not self._is_computing.acquire(blocking=False):
            raise EngineError("Expected one thread at a time to compute with a model; another one does.")
        try:
            self._request.infer([images], share_inputs=True)
            return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)
        finally:
            self._is_computing.release()


class _WithInputs(nn.Module):
    """From uint8 images to logits, preparation of the pixels included."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(to_inputs(images.permute(0, 3, 1, 2)))
        return logits


@cache
def _core() -> ov.Core:
    return ov.Core()


def _filled(weights: CheckedWeights) -> ov.Model:
    """Network of a version.

    Raises:
        WeightsError: the bytes are no safetensors file, or of another architecture than the manifest says.
    """
    manifest = weights.manifest
    try:
        if is_factory(manifest.architecture):
            require_source(manifest.architecture, manifest.architecture_source)
        tensors = safetensors.numpy.load(weights.content)
        network = _empty(
            manifest.architecture, manifest.width, manifest.channels, manifest.image_size, len(manifest.classes)
        ).clone()
        _put(network, tensors)
    except (safetensors.SafetensorError, UnlearningError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"Expected weights of {manifest.architecture} in {weights.digest}, got others: {reason}"
        ) from error
    return network


def _put(network: ov.Model, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Replace the made-up weights of a network by tensors of the same names, all of them.

    Raises:
        ValueError: names or shapes that are not the network's.
    """
    missing = {name for name in tensors if not name.endswith("num_batches_tracked")}
    for node in network.get_ops():
        name = node.get_friendly_name().removeprefix(_PREFIX)
        if node.get_type_name() != "Constant" or name == node.get_friendly_name():
            continue
        if name not in tensors:
            raise ValueError(f"no tensor {name}")
        if list(node.get_output_shape(0)) != list(tensors[name].shape):
            raise ValueError(f"{name} has the shape {tensors[name].shape}")
        weight = ov.opset13.constant(tensors[name], dtype=np.float32)
        node.output(0).replace(weight.output(0))
        missing.discard(name)
    if missing:
        raise ValueError(f"no place for {min(missing)} in OpenVINO's network; set EXPUNGE_BACKEND=torch")


@lru_cache(maxsize=4)
def _empty(architecture: str, width: int, channels: int, image_size: tuple[int, int], n_classes: int) -> ov.Model:
    """The network with made-up weights, for batches of any size."""
    model = build_empty(architecture, n_classes, channels=channels, width=width)
    if any(parameter.is_meta for parameter in model.parameters()):
        model = model.to_empty(device="cpu")
    model = model.requires_grad_(False).eval()
    for number, tensor in enumerate(model.state_dict().values(), 1):
        tensor.fill_(number)  # OpenVINO would make one constant of two that are equal
    example = torch.zeros((2, *image_size, channels), dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch advises against the tracing that OpenVINO's decoder does
        decoder = TorchScriptPythonDecoder(_WithInputs(model).eval(), example_input=(example,))
    frontend = FrontEndManager().load_by_framework("pytorch")
    network = frontend.convert(frontend.load(decoder))
    network.reshape(ov.PartialShape([-1, *image_size, channels]))
    return network
