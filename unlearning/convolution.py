"""Convolutions of small maps as matrix products, on CPUs.

Where a layer has more output channels than its maps have places in a batch, as the last stage of a ResNet on faces of
64×64, most of a convolution's time goes into reading its kernels, and the processor's convolution library reads them
badly: on an AMD EPYC a 3×3 convolution of 30 maps of 2×2 with 512 channels ran at a third of the speed of a matrix
product, and at a fifth where kernels' gradients are wanted. Copying each place's neighbourhood into a row is cheap on
maps that small, and what is left is the matrix product. Sums are the same but for their order; only the backward pass
rounds once more, each kernel place's part of an input's gradient.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

PLACES_A_CHANNEL = 2  # at most so many places, over all maps of a batch, for each output channel


@contextlib.contextmanager
def small_maps_as_products(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Within the block the model's convolutions are matrix products where that is faster; only on a CPU."""
    taken = [m for m in model.modules() if device.type == "cpu" and isinstance(m, nn.Conv2d) and _plain(m)]
    for module in taken:
        module._conv_forward = partial(_forward, module)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in taken:
            del module._conv_forward


def _plain(module: nn.Conv2d) -> bool:
    """Whether the convolution has one group, no holes and no other padding than zeros."""
    simple = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return simple and not isinstance(module.padding, str)


def _forward(module: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    (top, left), (down, right) = cast(tuple[int, int], module.padding), module.stride
    height, width = module.kernel_size
    rows = (x.shape[2] + 2 * top - height) // down + 1
    columns = (x.shape[3] + 2 * left - width) // right + 1
    if len(x) * rows * columns > PLACES_A_CHANNEL * module.out_channels:
        return conv2d(x, weight, bias, module.stride, module.padding)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    y: Tensor = _Product.apply(x, weight, (down, right), (top, left))
    return y if bias is None else y + bias[:, None, None]


class _Product(torch.autograd.Function):
    """A convolution `(n, c_in, h, w)` → `(n, c_out, rows, columns)`, channels-last in memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.geometry = stride, padding, x.shape
        (height, width), (top, left) = weight.shape[2:], padding
        padded = pad(x.permute(0, 2, 3, 1), (0, 0, left, left, top, top))  # (n, h + 2·top, w + 2·left, c_in)
        views = padded.unfold(1, height, stride[0]).unfold(2, width, stride[1])  # (n, rows, columns, c_in, kh, kw)
        n, rows, columns = views.shape[:3]
        patches = views.permute(0, 1, 2, 4, 5, 3).reshape(n * rows * columns, -1)  # (places, kh·kw·c_in)
        kernels = _flat(weight)  # (c_out, kh·kw·c_in)
        ctx.save_for_backward(patches, weight)
        return (patches @ kernels.T).view(n, rows, columns, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (down, right), (top, left), (n, c_in, h, w) = ctx.geometry
        patches, weight = ctx.saved_tensors
        c_out, _, height, width = weight.shape
        _, _, rows, columns = gradients[0].shape
        g = gradients[0].permute(0, 2, 3, 1).reshape(-1, c_out)  # (places, c_out)
        of_weight = of_x = None
        if ctx.needs_input_grad[1]:
            of_weight = (g.T @ patches).view(c_out, height, width, c_in).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[0]:
            parts = (g @ _flat(weight)).view(n, rows, columns, height, width, c_in)
            padded = g.new_zeros((n, h + 2 * top, w + 2 * left, c_in), dtype=torch.float32)
            for i in range(height):
                for j in range(width):
                    padded[:, i : i + down * rows : down, j : j + right * columns : right] += parts[:, :, :, i, j]
            of_x = padded[:, top : top + h, left : left + w].to(g.dtype).permute(0, 3, 1, 2)
        return of_x, of_weight, None, None


def _flat(weight: Tensor) -> Tensor:
    """Kernels `(c_out, c_in, kh, kw)` as `(c_out, kh·kw·c_in)`, without a copy where they lie channels-last."""
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
