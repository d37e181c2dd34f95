"""A model made ready for the CPU: norms folded into their convolutions, weights laid out once for oneDNN.

As PyTorch runs a convolution on a CPU, oneDNN lays its weights out anew on every call. For a ResNet-18 that is 3.5 of
the 5.5 ms of a single image, and the reason why small batches cost so much more an image than large ones. Laid out when
the model is loaded, a single image takes 2 ms and a batch of eight is almost as cheap an image as one of thirty-two.

Nothing here changes what is computed but for rounding: `tests/service/serving/test_engine.py` compares with float32,
module by module, over the architectures. A convolution that does not fit stays as it is. No object here is part of a
cycle: the weights of an engine that was exchanged are gone with it, not with the next collection.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node, Tracer
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_eval


class PackedConv2d(nn.Module):
    """A convolution whose weights lie as oneDNN wants them, made of an ordinary one and the shape of its input.

    Other batch sizes than the shape's are computed all the same.
    """

    def __init__(self, conv: nn.Conv2d, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = list(conv.stride), _padding(conv), list(conv.dilation)
        self.groups = conv.groups
        self.weight = torch._C._nn.mkldnn_reorder_conv2d_weight(  # type: ignore[call-arg]  # the stub lacks the last
            conv.weight.to_mkldnn(), self.padding, self.stride, self.dilation, self.groups, list(input_shape)
        )
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        return cast(
            Tensor,
            torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
            ),
        )


def pack(model: nn.Module, example: Tensor) -> nn.Module:
    """The model for inference on the CPU; what it was made of is used up.

    Args:
        model: in eval mode, float32 or bfloat16, without gradients.
        example: input `(n, channels, height, width)` of the model's dtype; `n` is the batch size to be quickest at.
    """
    if not _can_pack():
        return model
    shapes: dict[str, Sequence[int]] = {}
    convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}

    def look(name: str) -> None:
        def note(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
            shapes[name] = inputs[0].shape

        hooks.append(convolutions[name].register_forward_hook(note))

    hooks: list[torch.utils.hooks.RemovableHandle] = []
    for name in convolutions:
        look(name)
    with torch.inference_mode():
        model(example)
        for hook in hooks:
            hook.remove()
        for name, shape in shapes.items():
            if _fits(convolutions[name]):
                _replace(model, name, PackedConv2d(convolutions[name], shape))
    return model


def fold_norms(model: nn.Module, alone: Callable[[Callable[[], Graph]], Graph] = lambda job: job()) -> nn.Module:
    """The model with each batch norm that follows a convolution folded into it; to be called in eval mode.

    A model that cannot be traced, since its way depends on its input, stays as it is.

    Args:
        alone: runs a job of some milliseconds while no other model of this process computes. Tracing exchanges
            `nn.Module.__call__` for every model there is, and what one computes meanwhile fails.
    """
    try:
        graph = alone(lambda: _traced(model))
    except (TraceError, TypeError, NotImplementedError, RuntimeError):
        return model
    modules = dict(model.named_modules())
    targets = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.args else None
        if not (isinstance(before, Node) and node.op == before.op == "call_module" and len(before.users) == 1):
            continue
        conv, norm = modules[str(before.target)], modules[str(node.target)]
        is_used_once = targets[before.target] == targets[node.target] == 1
        if is_used_once and isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            _replace(model, str(before.target), fuse_conv_bn_eval(conv, norm))
            _replace(model, str(node.target), nn.Identity())
    return model


def _traced(model: nn.Module) -> Graph:
    tracer = Tracer()
    try:
        return tracer.trace(model)
    finally:
        vars(tracer).clear()  # it is part of a cycle, which would keep the model


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _can_pack() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_convolution_pointwise")


def _fits(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _padding(conv: nn.Conv2d) -> list[int]:
    if isinstance(conv.padding, str):
        raise TypeError(f"Expected padding in pixels, got {conv.padding!r}.")
    return list(conv.padding)
