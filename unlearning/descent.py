"""Descent over flat weights: the whole step is a handful of operations, however many tensors a model has.

All trainable weights of a model become views of one buffer, their gradients views of another. A step goes over them
block by block, each small enough to stay in a core's cache through all the operations of the step, and the
arithmetic is readable here. It also avoids the second or more that the first optimiser of `torch.optim` takes in each
process to import torch's compiler.
"""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearning.errors import RecipeError

_BLOCK = 1 << 16  # weights; with gradient and two moments 1 MB, half of a core's second cache where it is small


@dataclass(frozen=True)
class Block:
    """Some weights that lie side by side, all decayed or none, and what belongs to them.

    Attributes:
        decayed: whether weight decay acts on them.
        values: float32 `(k,)`.
        gradients: float32 `(k,)`, theirs between `open` and `close`.
        others: whatever else has an entry a weight.
        rounded: (values, gradients) as the passes have them, where these are not the float32 ones.
    """

    decayed: bool
    values: Tensor
    gradients: Tensor
    others: tuple[Tensor, ...]
    rounded: tuple[Tensor, Tensor] | None

    def open(self) -> None:
        """Makes the gradients of the last passes available in `gradients`."""
        if self.rounded is not None:
            self.gradients.copy_(self.rounded[1])

    def close(self) -> None:
        """Gives the present `values` to the next passes, and sets gradients to zero."""
        if self.rounded is None:
            self.gradients.zero_()
        else:
            self.rounded[0].copy_(self.values)
            self.rounded[1].zero_()


class FlatWeights:
    """Trainable weights of a model and their gradients, each in one buffer `(n_weights,)`.

    While this object lives the model's parameters are views of `values` and their gradients views of another buffer;
    `release` gives each parameter memory of its own again.

    Where the passes compute in another `dtype` than float32, autocast rounds the kernels of convolutions and linear
    layers at every pass and widens their gradients, each in a tensor of its own that goes through the machine's memory.
    Told the dtype, this object keeps rounded kernels beside the float32 ones and gives the model these; a step rounds
    and widens block by block in the cache. The numbers are the same, bit for bit.

    Args:
        model: its weights must be float32.
        dtype: of the passes, see `unlearning.training.arithmetic`.

    Attributes:
        values: the weights, float32: kernels and matrices first, then biases and norms; kernels channels-last.
        n_decayed: length of the part that weight decay acts on (kernels and matrices).
    """

    def __init__(self, model: nn.Module, *, dtype: torch.dtype = torch.float32) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        if any(p.dtype != torch.float32 for p in parameters):
            raise RecipeError("Expected a model with float32 weights; the arithmetic may be bfloat16, its weights not.")
        rounded = set() if dtype == torch.float32 else _kernels(model)
        self._parameters = sorted(parameters, key=lambda p: (p.ndim <= 1, p not in rounded))
        self._n_rounded = sum(p.numel() for p in self._parameters if p in rounded)
        self.n_decayed = sum(p.numel() for p in self._parameters if p.ndim > 1)
        n_weights = sum(p.numel() for p in self._parameters)
        device = self._parameters[0].device
        self.values = torch.empty(n_weights, device=device)
        self._gradients = torch.zeros(n_weights - self._n_rounded, device=device)
        self._rounded = [torch.zeros(self._n_rounded, dtype=dtype, device=device) for _ in ("values", "gradients")]
        start = 0
        for parameter in self._parameters:
            part = slice(start, start + parameter.numel())
            value = _shaped_like(self.values[part], parameter)
            value.copy_(parameter.detach())
            start = part.stop
            if part.stop <= self._n_rounded:
                seen, gradient = (_shaped_like(buffer[part], parameter) for buffer in self._rounded)
                parameter.data = seen.copy_(value)
            else:
                narrowed = slice(part.start - self._n_rounded, part.stop - self._n_rounded)
                parameter.data, gradient = value, _shaped_like(self._gradients[narrowed], parameter)
            parameter.grad = gradient

    def blocks(self, *others: Tensor) -> list[Block]:
        """Returns the weights block by block, with their parts of `others`, each `(n_weights,)`."""
        size = _BLOCK if self.values.device.type == "cpu" else self.values.numel()
        room = torch.empty(min(size, self._n_rounded), device=self.values.device)
        found = []
        cuts = (0, self._n_rounded, self.n_decayed, self.values.numel())
        for first, last in itertools.pairwise(cuts):
            for start in range(first, last, size):
                part = slice(start, min(start + size, last))
                if last <= self._n_rounded:
                    gradients = room[: part.stop - part.start]
                    rounded = (self._rounded[0][part], self._rounded[1][part])
                else:
                    gradients = self._gradients[part.start - self._n_rounded : part.stop - self._n_rounded]
                    rounded = None
                decayed = last <= self.n_decayed
                found.append(
                    Block(decayed, self.values[part], gradients, tuple(other[part] for other in others), rounded)
                )
        return found

    def release(self) -> None:
        """Returns every parameter its own float32 memory again, and drops the gradients."""
        start = 0
        for parameter in self._parameters:
            value = _shaped_like(self.values[start : start + parameter.numel()], parameter)
            start += parameter.numel()
            parameter.grad = None
            parameter.data = value.clone(memory_format=torch.preserve_format)


class SGD:
    """Stochastic gradient descent with Nesterov momentum (Sutskever et al. 2013, in the form torch.optim.SGD has).

    g ← ∇L + λθ;  v ← μv + g;  θ ← θ − η(g + μv), weight decay λ on kernels and matrices only.
    """

    def __init__(self, weights: FlatWeights, *, momentum: float, weight_decay: float) -> None:
        self._momentum, self._weight_decay = momentum, weight_decay
        self._blocks = weights.blocks(torch.zeros_like(weights.values))

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Takes one step down the gradients, and sets them to zero."""
        for block in self._blocks:
            block.open()
            values, gradients, (velocity,) = block.values, block.gradients, block.others
            if block.decayed:
                gradients.add_(values, alpha=self._weight_decay)
            velocity.mul_(self._momentum).add_(gradients)
            values.add_(gradients.add_(velocity, alpha=self._momentum), alpha=-learning_rate)
            block.close()


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980, Algorithm 1), weight decay added to the gradient as torch.optim.Adam does.

    Weight decay acts on kernels and matrices only.
    """

    def __init__(self, weights: FlatWeights, *, momentum: float, weight_decay: float) -> None:
        self._beta1, self._beta2, self._epsilon = momentum, 0.999, 1e-8
        self._weight_decay = weight_decay
        self._blocks = weights.blocks(torch.zeros_like(weights.values), torch.zeros_like(weights.values))
        self._n_steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Takes one step down the gradients, and sets them to zero."""
        self._n_steps += 1
        correction1, correction2 = 1 - self._beta1**self._n_steps, 1 - self._beta2**self._n_steps
        for block in self._blocks:
            block.open()
            values, gradients, (mean, square) = block.values, block.gradients, block.others
            if block.decayed:
                gradients.add_(values, alpha=self._weight_decay)
            mean.lerp_(gradients, 1 - self._beta1)
            square.mul_(self._beta2).addcmul_(gradients, gradients, value=1 - self._beta2)
            # √(square / c₂) + ε with the division moved into the step size, as the authors propose at the end of §2
            spread = square.sqrt().add_(self._epsilon * math.sqrt(correction2))
            values.addcdiv_(mean, spread, value=-learning_rate * math.sqrt(correction2) / correction1)
            block.close()


def _kernels(model: nn.Module) -> set[Tensor]:
    """Returns the weights that autocast rounds: those of convolutions and linear layers."""
    layers = (module for module in model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear))
    return {layer.weight for layer in layers if layer.weight.requires_grad}


def _shaped_like(flat: Tensor, parameter: Tensor) -> Tensor:
    """Returns a view of `flat` in the parameter's shape; kernels of convolutions lie channels-last."""
    if parameter.ndim == 4:
        n_out, n_in, height, width = parameter.shape
        return flat.view(n_out, height, width, n_in).permute(0, 3, 1, 2)
    return flat.view(parameter.shape)
