"""Fitting a network's last layer alone.

A linear classifier fitted on the outputs of the layers before it restores much of a damaged network's accuracy, at the
cost of one forward pass (Kirichenko et al. 2022, arXiv 2204.02937). Here the fit can also hold the margins of the
forget set at given values.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import log_softmax, one_hot

from unlearning.errors import MethodError
from unlearning.procedures.feeding import Feed
from unlearning.procedures.finishing import margins
from unlearning.procedures.modules import layout


@dataclass(frozen=True)
class Features:
    """Inputs of the last layer, on the CPU.

    Attributes:
        values: float64 `(n, n_features + 1)`; the last column is 1, for the bias.
        labels: `(n,)`.
    """

    values: Tensor
    labels: Tensor


def features_of(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], feed: Feed) -> Features:
    """Returns the inputs of the model's last layer, in the feed's arithmetic; one forward pass.

    Args:
        batches: inputs `(b, channels, height, width)` and labels `(b,)`.

    Raises:
        MethodError: the last layer is not linear, or something follows it.
    """
    classifier = last_layer(model)
    seen: list[tuple[Tensor, Tensor]] = []  # inputs and outputs of the last layer
    labels: list[Tensor] = []
    hook = classifier.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    try:
        for inputs, named in batches:
            outputs = feed.teach(model, inputs)
            if not torch.allclose(outputs, seen[-1][1].float(), rtol=0.0, atol=0.0, equal_nan=True):
                raise MethodError(f"Expected {type(model).__name__} to give what its last linear layer gives.")
            labels.append(named)
    finally:
        hook.remove()
    values = torch.cat([inputs for inputs, _ in seen]).double().cpu()
    return Features(torch.cat([values, values.new_ones(len(values), 1)], dim=1), torch.cat(labels).cpu())


def last_layer(model: nn.Module) -> nn.Linear:
    """Returns the linear layer with a bias that makes the logits.

    Raises:
        MethodError: the last layer is another.
    """
    found = model.get_submodule(layout(model).classifier)
    if not isinstance(found, nn.Linear) or found.bias is None:
        raise MethodError(f"Expected a linear layer with a bias at the end of {type(model).__name__}, found {found}.")
    return found


def fit_last_layer(
    model: nn.Module, kept: Features, held: Features, target: Tensor, *, hold: float, decay: float, n_iterations: int
) -> None:
    """Fits the last layer, in place and from its present weights, with L-BFGS to minimise

        mean cross-entropy on `kept` + hold · mean (margin − target)² on `held` + decay · ‖W‖².

    Args:
        target: margins `(n_held,)`.
        n_iterations: largest number of iterations.

    Raises:
        MethodError: the last layer is not linear.
    """
    from scipy.optimize import minimize  # loaded for a third of a second, by every training process if above

    classifier = last_layer(model)
    weight = torch.cat([classifier.weight.detach(), classifier.bias.detach()[:, None]], dim=1)  # (c, n_features + 1)
    wanted = target.double().cpu()

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        value, gradient = loss_and_gradient(
            torch.from_numpy(flat).view(weight.shape), kept, held, wanted, hold=hold, decay=decay
        )
        return value, gradient.flatten().numpy()

    start = weight.double().cpu().flatten().numpy()
    found = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": n_iterations})
    fitted = torch.from_numpy(found.x).view(weight.shape).to(weight.device, weight.dtype)
    with torch.no_grad():
        classifier.weight.copy_(fitted[:, :-1])
        classifier.bias.copy_(fitted[:, -1])


def loss_and_gradient(
    weight: Tensor, kept: Features, held: Features, target: Tensor, *, hold: float, decay: float
) -> tuple[float, Tensor]:
    """Returns what `fit_last_layer` minimises, and its gradient, at a last layer `(c, n_features + 1)`."""
    n_classes = len(weight)
    log_p = log_softmax(kept.values @ weight.T, dim=1)
    truth = one_hot(kept.labels, n_classes).double()
    value = -(log_p * truth).sum() / len(truth)
    gradient = (log_p.exp() - truth).T @ kept.values / len(truth)

    logits, truth = held.values @ weight.T, one_hot(held.labels, n_classes).double()
    missed = margins(logits, held.labels) - target
    others = logits.masked_fill(truth.bool(), -torch.inf).softmax(dim=1)  # a margin falls by these as logits grow
    value += hold * missed.square().mean()
    gradient += (2.0 * hold / len(missed) * missed[:, None] * (truth - others)).T @ held.values

    value += decay * weight[:, :-1].square().sum()
    gradient[:, :-1] += 2.0 * decay * weight[:, :-1]
    return float(value), gradient
