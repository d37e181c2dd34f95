"""Sebastian, "PRMQ": prune almost all weights, draw them anew, and repair with the entropy of the answers matched.

Fourth place of the NeurIPS 2023 machine unlearning challenge: *prune, re-initialise, match, quantise*. The 99 % of
all weights and biases of convolutions and linear layers with the smallest magnitude, over the network as a whole, are
pruned: weights are drawn anew from U(−√k, √k), k = 1 / fan-in, biases become 0. The repair adds to class-weighted
cross-entropy the squared difference between the entropies of the current and of the original model's answers on the
same images. At the end weights pass through half precision.

Cost: `epochs` passes over the retain set, through student (backward) and original (forward); the forget set is not
read. Defaults: the team's (99 %, 3.2 epochs, 5e-4, weight decay 5e-4, class weights counts^-0.1). Interpretation:
constant rate. Known failure: 1 % of a small network is too little to start from, and accuracy stays well below
retraining's.
"""

import dataclasses
import math

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, mse_loss

from unlearning.procedures.feeding import Feed, balance, descend, feeding, rates, sgd
from unlearning.procedures.masks import smallest_of_all
from unlearning.procedures.modules import layer_weights
from unlearning.procedures.settings import DescentSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class SebastianSettings(DescentSettings):
    """The team's values.

    Attributes:
        pruned_share: share of all weights and biases of convolutions and linear layers pruned, the smallest ones.
        entropy_weight: weight of the squared difference of entropies.
        class_weight_power: class weights are counts^-power.
        half: whether the result passes through half precision.
    """

    epochs: float = ranged(3.2, 0.0, 1_000.0)
    learning_rate: float = ranged(5e-4, 0.0, 10.0)
    weight_decay: float = ranged(5e-4, 0.0, 1.0)
    pruned_share: float = ranged(0.99, 0.0, 1.0)
    entropy_weight: float = ranged(1.0, 0.0, 1e3)
    class_weight_power: float = ranged(0.1, 0.0, 1.0)
    half: bool = True


def sebastian(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: SebastianSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with its smallest weights drawn anew, repaired on `retain`; `forget` is not read."""
    with feeding(settings, seed, device) as feed:
        original = model.to(feed.device).eval()
        student = feed.student(model)
        weights = layer_weights(student)
        biases = biases_of(student, weights)
        magnitudes = {name: parameter.abs() for name, parameter in {**weights, **biases}.items()}
        pruned = smallest_of_all(magnitudes, settings.pruned_share)
        for name, weight in weights.items():
            redraw_uniform(weight, pruned[name], feed)
        for name, bias in biases.items():
            bias.data.masked_fill_(pruned[name], 0.0)
        class_weights = balance(student, retain, settings.class_weight_power)
        optimiser = sgd(student, settings)
        steps = feed.batches(retain, settings.batch_size, settings.epochs)
        for (inputs, labels), rate in zip(steps, rates(settings, len(retain)), strict=True):
            outputs = feed.outputs(student, inputs)
            unlike = mse_loss(entropy(outputs), entropy(feed.teach(original, inputs)))
            loss = cross_entropy(outputs, labels, weight=class_weights) + settings.entropy_weight * unlike
            descend(optimiser, loss, rate)
        return through_half(student) if settings.half else student


def biases_of(student: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the biases that belong to the layers of some weights, by parameter name."""
    parameters = dict(student.named_parameters())
    names = [name.removesuffix("weight") + "bias" for name in weights]
    return {name: parameters[name] for name in names if name in parameters}


@torch.no_grad()
def redraw_uniform(weight: Tensor, mask: Tensor, feed: Feed) -> None:
    """Draws the masked entries from U(−√k, √k), k = 1 / fan-in."""
    bound = 1.0 / math.sqrt(weight[0].numel())
    fresh = (2.0 * torch.rand(weight.shape, generator=feed.generator, device=feed.device) - 1.0) * bound
    weight.copy_(torch.where(mask, fresh, weight))


def entropy(logits: Tensor) -> Tensor:
    """Returns the entropy in nats `(b,)` of softmax over logits `(b, n_classes)`."""
    log_p = log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1)


@torch.no_grad()
def through_half(model: nn.Module) -> nn.Module:
    """Rounds floating-point parameters and buffers to half precision; they stay float32."""
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())
    return model
