"""Descent over flat weights: the whole step is a handful of operations, however many tensors a model has.

All trainable weights of a model become views of one float32 buffer, their gradients views of another. A step goes over
them block by block, each small enough to stay in a core's cache through all the operations of the step, and the
arithmetic stands here in lines that can be read. It also spares each child process that trains the second or more that
the first optimiser of `torch.optim` takes to import torch's compiler.
"""

import math

import torch
from torch import Tensor, nn

from unlearning.errors import RecipeError

_BLOCK = 1 << 16  # weights; with gradient and two moments 1 MB, half of a core's second cache where it is small


class FlatWeights:
    """Trainable weights of a model and their gradients, each in one float32 buffer `(n_weights,)`.

    While this object lives the model's parameters are views of `values` and their gradients views of `gradients`;
    `release` gives each parameter memory of its own again.

    Attributes:
        values: the weights, kernels and matrices first, then biases and norms; kernels channels-last.
        gradients: in the same order; backward passes add to it.
        n_decayed: length of the part that weight decay acts on (kernels and matrices).
    """

    def __init__(self, model: nn.Module) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        self._parameters = [p for p in parameters if p.ndim > 1] + [p for p in parameters if p.ndim <= 1]
        if any(p.dtype != torch.float32 for p in self._parameters):
            raise RecipeError("Expected a model with float32 weights; the arithmetic may be bfloat16, its weights not.")
        self.n_decayed = sum(p.numel() for p in self._parameters if p.ndim > 1)
        n_weights = sum(p.numel() for p in self._parameters)
        device = self._parameters[0].device
        self.values = torch.empty(n_weights, device=device)
        self.gradients = torch.zeros(n_weights, device=device)
        start = 0
        for parameter in self._parameters:
            part = slice(start, start + parameter.numel())
            value = _shaped_like(self.values[part], parameter)
            value.copy_(parameter.detach())
            parameter.data = value
            parameter.grad = _shaped_like(self.gradients[part], parameter)
            start = part.stop

    def blocks(self, *others: Tensor) -> list[tuple[bool, tuple[Tensor, ...]]]:
        """Gives (whether weight decay acts, views of values, gradients and `others`) for one block after another."""
        size = _BLOCK if self.values.device.type == "cpu" else self.values.numel()
        tensors = (self.values, self.gradients, *others)
        pieces = [
            (decayed, block)
            for decayed, part in ((True, slice(0, self.n_decayed)), (False, slice(self.n_decayed, None)))
            for block in zip(*(tensor[part].split(size) for tensor in tensors), strict=True)
        ]
        return [(decayed, block) for decayed, block in pieces if len(block[0]) > 0]

    def release(self) -> None:
        """Gives every parameter its own memory again, and drops the gradients."""
        for parameter in self._parameters:
            parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
            parameter.grad = None


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
        for decayed, (values, gradients, velocity) in self._blocks:
            if decayed:
                gradients.add_(values, alpha=self._weight_decay)
            velocity.mul_(self._momentum).add_(gradients)
            values.add_(gradients.add_(velocity, alpha=self._momentum), alpha=-learning_rate)
            gradients.zero_()


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
        for decayed, (values, gradients, mean, square) in self._blocks:
            if decayed:
                gradients.add_(values, alpha=self._weight_decay)
            mean.lerp_(gradients, 1 - self._beta1)
            square.mul_(self._beta2).addcmul_(gradients, gradients, value=1 - self._beta2)
            # √(square / c₂) + ε with the division moved into the step size, as the authors propose at the end of §2
            spread = square.sqrt().add_(self._epsilon * math.sqrt(correction2))
            values.addcdiv_(mean, spread, value=-learning_rate * math.sqrt(correction2) / correction1)
            gradients.zero_()


def _shaped_like(flat: Tensor, parameter: Tensor) -> Tensor:
    """Gives a view of `flat` in the parameter's shape; kernels of convolutions lie channels-last."""
    if parameter.ndim == 4:
        n_out, n_in, height, width = parameter.shape
        return flat.view(n_out, height, width, n_in).permute(0, 3, 1, 2)
    return flat.view(parameter.shape)
