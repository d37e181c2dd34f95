"""A convolution's weights laid out for oneDNN once, when the model is loaded, and not on every call.

Measured with `python benchmarks/speedups.py packed_weights` on two cores of an AMD EPYC: a ResNet-18 in bfloat16 is 2.0
times as fast for a single image, 1.3 in batches of 8 and 1.2 in batches of 32.

What is private here: the operator `mkldnn::_convolution_pointwise`, which PyTorch's own compiler calls for a frozen
model on a CPU. The public ways to it were measured beside it. `torch.compile` with freezing takes 16 s or more for each
model version and input size. `torch.utils.mkldnn.to_mkldnn` and `torch.mkldnn_convolution` lay weights out on every
call all the same (0.85 and 0.76 of the speed without anything, for a single image), and `mkldnn_prepacked.conv2d_run`
halves the speed for grey images.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from service.inference.folding import replace_module
from service.serving.speedups import PACKED_WEIGHTS, unavailable


class PackedConv2d(nn.Module):
    """A convolution whose weights lie as oneDNN wants them, made of an ordinary one and the shape of its input.

    Other batch sizes than the shape's are computed all the same.
    """

    def __init__(self, conv: nn.Conv2d, input_shape: Sequence[int]) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = list(conv.stride), _padding(conv), list(conv.dilation)
        self.groups = conv.groups
        reorder, self._compute = _operators()
        self.weight = reorder(
            conv.weight.to_mkldnn(), self.padding, self.stride, self.dilation, self.groups, list(input_shape)
        )
        self.bias = conv.bias

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Conv2d`."""
        found = self._compute(
            x, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups, "none", [], ""
        )
        return cast(Tensor, found)


def pack(model: nn.Module, example: Tensor) -> nn.Module:
    """The model for inference on the CPU; what it was made of is used up. Unchanged where weights cannot be packed.

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
                replace_module(model, name, PackedConv2d(convolutions[name], shape))
    return model


def _operators() -> tuple[Any, Any]:
    """The operators that lay weights out, and that compute with them."""
    return torch.ops.aten.mkldnn_reorder_conv2d_weight, torch.ops.mkldnn._convolution_pointwise


@cache
def _can_pack() -> bool:
    """Whether this PyTorch computes with packed weights; tried once a process."""
    try:
        with torch.inference_mode():
            PackedConv2d(nn.Conv2d(1, 1, 1).requires_grad_(False), (1, 1, 2, 2))(torch.zeros(1, 1, 2, 2))
    except (AttributeError, TypeError, RuntimeError) as error:
        unavailable(PACKED_WEIGHTS, error)
        return False
    return True


def _fits(conv: nn.Conv2d) -> bool:
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def _padding(conv: nn.Conv2d) -> list[int]:
    if isinstance(conv.padding, str):
        raise TypeError(f"Expected padding in pixels, got {conv.padding!r}.")
    return list(conv.padding)
