"""Descent over flat weights: the whole step is a handful of operations, however many tensors a model has.

All trainable weights of a model become views of one float32 buffer, their gradients views of another. A step then
costs a few passes over memory instead of a few launches a tensor, and the arithmetic stands here in lines that can be
read. It also spares each child process that trains the second that the first optimiser of `torch.optim` takes to
import the compiler.
"""

import torch
from torch import Tensor, nn

from unlearning.errors import RecipeError


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
        self._weights = weights
        self._momentum, self._weight_decay = momentum, weight_decay
        self._velocity = torch.zeros_like(weights.values)

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Takes one step down the gradients, and sets them to zero."""
        weights, gradients = self._weights, self._weights.gradients
        n = weights.n_decayed
        gradients[:n].add_(weights.values[:n], alpha=self._weight_decay)
        self._velocity.mul_(self._momentum).add_(gradients)
        weights.values.add_(gradients.add_(self._velocity, alpha=self._momentum), alpha=-learning_rate)
        gradients.zero_()


class Adam:
    """Adam (Kingma and Ba, arXiv 1412.6980, Algorithm 1), weight decay added to the gradient as torch.optim.Adam does.

    Weight decay acts on kernels and matrices only.
    """

    def __init__(self, weights: FlatWeights, *, momentum: float, weight_decay: float) -> None:
        self._weights, self._weight_decay = weights, weight_decay
        self._beta1, self._beta2, self._epsilon = momentum, 0.999, 1e-8
        self._mean = torch.zeros_like(weights.values)
        self._square = torch.zeros_like(weights.values)
        self._n_steps = 0

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Takes one step down the gradients, and sets them to zero."""
        weights, gradients = self._weights, self._weights.gradients
        n = weights.n_decayed
        self._n_steps += 1
        gradients[:n].add_(weights.values[:n], alpha=self._weight_decay)
        self._mean.lerp_(gradients, 1 - self._beta1)
        self._square.mul_(self._beta2).addcmul_(gradients, gradients, value=1 - self._beta2)
        correction1, correction2 = 1 - self._beta1**self._n_steps, 1 - self._beta2**self._n_steps
        spread = (self._square / correction2).sqrt_().add_(self._epsilon)
        weights.values.addcdiv_(self._mean, spread, value=-learning_rate / correction1)
        gradients.zero_()


def _shaped_like(flat: Tensor, parameter: Tensor) -> Tensor:
    """Gives a view of `flat` in the parameter's shape; kernels of convolutions lie channels-last."""
    if parameter.ndim == 4:
        n_out, n_in, height, width = parameter.shape
        return flat.view(n_out, height, width, n_in).permute(0, 3, 1, 2)
    return flat.view(parameter.shape)
