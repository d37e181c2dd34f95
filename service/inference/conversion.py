"""A process that converts a network from PyTorch for OpenVINO and ends: `python -m service.inference.conversion`.

Of its own, since whoever asks may be a serving process, which must not import torch; and because a fresh process gives
the same bytes for the same network.

Tested in `tests/service/inference/test_openvino_model.py`.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import openvino as ov
import torch
from openvino.frontend import FrontEndManager
from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder
from torch import Tensor, nn

from service.inference.network import PREFIX, joined
from unlearning.errors import UnlearningError
from unlearning.factories import is_factory, require_source
from unlearning.models import build_empty, to_inputs


class _WithInputs(nn.Module):
    """From uint8 images to logits, preparation of the pixels included."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(to_inputs(images.permute(0, 3, 1, 2)))
        return logits


def convert(  # noqa: PLR0917
    architecture: str, source: str, width: int, channels: int, image_size: tuple[int, int], n_classes: int
) -> ov.Model:
    """The network for batches of any size, with a parameter in the place of each weight, of the weight's name.

    Args:
        source: of a factory's code, as the manifest has it.

    Raises:
        UnlearningError: no such architecture; or the factory's code is another.
    """
    if is_factory(architecture):
        require_source(architecture, source)
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
    _empty(network)
    return network


def _empty(network: ov.Model) -> None:
    """Put places in the place of the made-up weights."""
    places = []
    for node in network.get_ordered_ops():
        name = node.get_friendly_name()
        if node.get_type_name() == "Constant" and name.startswith(PREFIX):
            place = ov.opset13.parameter(node.get_output_shape(0), node.get_output_element_type(0), name=name)
            node.output(0).replace(place.output(0))
            places.append(place)
    network.add_parameters(places)


def main() -> None:
    """Convert what the first argument says, and write it to the file `network` in the folder of the second."""
    architecture, source, width, channels, image_size, n_classes = json.loads(sys.argv[1])
    folder = Path(sys.argv[2])
    try:
        network = convert(architecture, source, width, channels, tuple(image_size), n_classes)
    except UnlearningError as error:
        sys.exit(str(error).partition("\n")[0])
    graph, constants = folder / "graph.xml", folder / "graph.bin"
    ov.serialize(network, graph, constants)
    (folder / "network").write_bytes(joined(graph.read_bytes(), constants.read_bytes()))


if __name__ == "__main__":
    main()
