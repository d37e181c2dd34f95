"""Logits by OpenVINO, which computes convolutions on CPUs faster than PyTorch does; needs the extra `openvino`.

A version's weights are those of the safetensors file whose digest was checked, and of no other file. What is computed
with them says its *network* (`service.inference.network`), which was converted from PyTorch when the version was
registered, holds no weight, and whose digest is in the manifest. So nothing here imports torch, neither when a process
starts nor when it swaps. ResNets and most other convolutional networks can be served so; where the conversion takes
weights apart (attention), loading says so and nothing is served.

The processes of a service share the cores, so each gets one thread, and none is pinned: OpenVINO would pin all of them
to the same core.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import properties
from openvino.properties import hint

from service.errors import EngineError, WeightsError
from service.inference.network import PREFIX, network_of, parts_of
from service.inference.tensors import Tensors
from service.models.registry import CheckedWeights

_BFLOAT16 = {"amx_bf16", "avx512_bf16"}


class OpenVinoModel:
    """Logits of one model version, to be called by one thread at a time.

    OpenVINO itself would give two threads each other's answers, without an error.
    """

    def __init__(self, weights: CheckedWeights) -> None:
        self.dtype = "bfloat16" if multiplies_bfloat16() else "float32"
        options = {
            hint.enable_cpu_pinning: False,
            hint.inference_precision: ov.Type.bf16 if self.dtype == "bfloat16" else ov.Type.f32,
            properties.inference_num_threads: 1,
            properties.num_streams: 1,
        }
        self._is_computing = Lock()
        self._request = _core().compile_model(_filled(weights), "CPU", options).create_infer_request()

    def __call__(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """As `service.inference.engine.Model`.

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


@cache
def _core() -> ov.Core:
    return ov.Core()


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether the processor does; `unlearning.devices.resolve_dtype` asks torch for the same two instructions."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                return not _BFLOAT16.isdisjoint(line.split())
    return False  # elsewhere than on Linux, and on ARM, whose line has another name


def _filled(weights: CheckedWeights) -> ov.Model:
    """Network of a version.

    Raises:
        WeightsError: the bytes are no safetensors file, or of another architecture than the manifest says.
    """
    manifest = weights.manifest
    try:
        tensors = Tensors(weights.content)
        network = _read(weights.network if weights.network is not None else network_of(manifest))
        _put(network, tensors)
        tensors.close()
    except (EngineError, LookupError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"Expected weights of {manifest.architecture} in {weights.digest}, got others: {reason}"
        ) from error
    return network


def _read(network: bytes) -> ov.Model:
    graph, constants = parts_of(network)
    try:
        return _core().read_model(graph, ov.Tensor(constants))
    except RuntimeError as error:
        raise EngineError("OpenVINO cannot read the network; it was written by a later version of it.") from error


def _put(network: ov.Model, tensors: Tensors) -> None:
    """Put tensors in a network's places for them, which have the same names, all of them.

    Raises:
        ValueError: names or shapes that are not the network's.
    """
    places = {}
    for place in network.get_parameters():
        name = place.get_friendly_name().removeprefix(PREFIX)
        if name == place.get_friendly_name():
            continue  # the images
        if name not in tensors.names():
            raise ValueError(f"no tensor {name}")
        if list(place.get_output_shape(0)) != tensors.shape(name):
            raise ValueError(f"{name} has the shape {tensors.shape(name)}")
        places[name] = place
    missing = [name for name in tensors.names() if name not in places and not name.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"no place for {min(missing)} in OpenVINO's network; set EXPUNGE_BACKEND=torch")
    _fold_norms(network, tensors)
    for name, place in places.items():
        if name in tensors.names():
            place.output(0).replace(ov.op.Constant(tensors.take(name)).output(0))
        network.remove_parameter(place)


def _fold_norms(network: ov.Model, tensors: Tensors) -> None:
    """Fold each batch norm that follows a convolution into it, as OpenVINO would, and use its tensors up.

    OpenVINO keeps all weights twice while it does so itself: a model's swap would take half as much memory again.
    """
    for norm in network.get_ordered_ops():
        if norm.get_type_name() != "BatchNormInference":
            continue
        convolution = norm.input(0).get_source_output().get_node()
        if convolution.get_type_name() != "Convolution" or len(convolution.output(0).get_target_inputs()) != 1:
            continue
        names = [_only_here(convolution.input(1)), *(_only_here(norm.input(number)) for number in range(1, 5))]
        if not all(names):
            continue
        weight, gain, offset, mean, variance = (tensors.take(name) for name in names)
        scale = gain / np.sqrt(variance + np.float32(norm.get_attributes()["epsilon"]))
        sides = (1,) * (weight.ndim - 2)
        folded = ov.op.Constant(weight * scale.reshape(-1, 1, *sides), shared_memory=True)
        convolution.input(1).replace_source_output(folded.output(0))
        shift = ov.opset13.constant((offset - mean * scale).reshape(1, -1, *sides), dtype=np.float32)
        norm.output(0).replace(ov.opset13.add(convolution.output(0), shift).output(0))


def _only_here(value: ov.Input) -> str:
    """Name of the weight that goes in, in float32 and nowhere else; empty for anything else."""
    source = value.get_source_output()
    while len(source.get_target_inputs()) == 1 and source.get_element_type() == ov.Type.f32:
        node = source.get_node()
        if node.get_type_name() == "Parameter":
            return str(node.get_friendly_name().removeprefix(PREFIX))
        if node.get_type_name() != "Convert":
            break
        source = node.input(0).get_source_output()
    return ""
