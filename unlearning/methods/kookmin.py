"""Kookmin, "MSG": re-draw the convolution weights that forgetting would move least, then repair on the retain set.

Second place of the NeurIPS 2023 machine unlearning challenge. The gradient of cross-entropy on a random part of the
retain set and of its negative on the forget set are summed. In every convolution the weights with the
smallest absolute gradient are drawn anew (He normal, fan-out); the others keep their values and get scaled-down
gradients, while the whole network is repaired on the retain set under a rate that rises and falls.

Cost: two passes over ‖S‖ examples for the gradients, then one pass over the retain set per multiplier. Defaults:
the team's (30 %, 1e-3, weight decay 5e-4, kept gradients × 0.1, multipliers 1/3 … 1 … 1/3; batch 64, SGD with
momentum 0.9; gradients in training mode, where a batch is normalised by itself, as the team's code as
xcadet/deepunlearn has it). `gradients_in` "eval" normalises by the original's statistics instead, and chooses other
weights. Interpretations: the gradients are taken in float32, and the statistics that their passes leave in norms are
put back, for some are of the forget set. Known failure: few re-drawn weights hardly change the margins of a subject
who looks like subjects of the retain set.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearning.procedures.feeding import Feed, descend, feeding, n_steps, needed, sgd
from unlearning.procedures.masks import smallest
from unlearning.procedures.modules import convolution_weights
from unlearning.procedures.settings import DescentSettings, choice, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class KookminSettings(DescentSettings):
    """The team's values.

    Attributes:
        epochs: passes over the retain set, spread evenly over the multipliers.
        redrawn_share: share of each convolution's weights drawn anew.
        gradients_in: mode of the network while the gradients are taken, "training" or "eval".
        kept_gradient: factor on the gradients of the convolution weights that were kept.
        multipliers: of the learning rate, for equal parts of the repair; `schedule` is not used.
    """

    epochs: float = ranged(5.0, 0.0, 1_000.0)
    learning_rate: float = ranged(1e-3, 0.0, 10.0)
    weight_decay: float = ranged(5e-4, 0.0, 1.0)
    redrawn_share: float = ranged(0.3, 0.0, 1.0)
    gradients_in: str = choice("training", "training", "eval")
    kept_gradient: float = ranged(0.1, 0.0, 1.0)
    multipliers: tuple[float, ...] = ranged((1 / 3, 2 / 3, 1.0, 2 / 3, 1 / 3), 0.0, 10.0)


def kookmin(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: KookminSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with the convolution weights of smallest gradient re-drawn, repaired on `retain`."""
    forget = needed(forget)
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        kernels = convolution_weights(student)
        gradients = agreement_gradients(student, kernels, forget=forget, retain=retain, settings=settings, feed=feed)
        redrawn = {name: smallest(gradient.abs(), settings.redrawn_share) for name, gradient in gradients.items()}
        for name, kernel in kernels.items():
            redraw(kernel, redrawn[name])
        repair(student, kernels, redrawn, retain=retain, settings=settings, feed=feed)
        return student


def agreement_gradients(
    student: nn.Module,
    kernels: dict[str, Tensor],
    *,
    forget: Examples,
    retain: Examples,
    settings: KookminSettings,
    feed: Feed,
) -> dict[str, Tensor]:
    """Returns the gradient of CE on ‖S‖ random retain examples minus that of CE on S, by kernel name, in float32."""
    chosen = torch.randperm(len(retain), generator=feed.generator, device=feed.device)[: len(forget)]
    fresh = retain.to(feed.device).subset(chosen.cpu())
    exact = dataclasses.replace(feed, dtype=torch.float32)
    statistics = {name: buffer.clone() for name, buffer in student.named_buffers()}
    student.train(settings.gradients_in == "training")
    student.zero_grad(set_to_none=True)
    for examples, sign in ((fresh, 1.0), (forget, -1.0)):
        for inputs, labels in exact.batches(examples, settings.batch_size):
            loss = sign * cross_entropy(exact.outputs(student, inputs), labels, reduction="sum")
            loss.backward()
    gradients = {name: torch.zeros_like(k) if k.grad is None else k.grad.clone() for name, k in kernels.items()}
    student.zero_grad(set_to_none=True)
    student.load_state_dict(statistics, strict=False)
    student.train()
    return gradients


@torch.no_grad()
def redraw(kernel: Tensor, mask: Tensor) -> None:
    """Draws the masked entries anew: He normal, fan-out, from torch's global generator."""
    fresh = nn.init.kaiming_normal_(torch.empty_like(kernel), mode="fan_out", nonlinearity="relu")
    kernel.copy_(torch.where(mask, fresh, kernel))


def repair(
    student: nn.Module,
    kernels: dict[str, Tensor],
    redrawn: dict[str, Tensor],
    *,
    retain: Examples,
    settings: KookminSettings,
    feed: Feed,
) -> None:
    """Trains on the retain set with the kept kernel entries slowed and the rate following the multipliers."""
    scale = {name: torch.where(redrawn[name], 1.0, settings.kept_gradient) for name in kernels}

    def slow_kept() -> None:
        for name, kernel in kernels.items():
            if kernel.grad is not None:
                kernel.grad.mul_(scale[name])

    optimiser = sgd(student, settings)
    steps = n_steps(len(retain), settings.batch_size, settings.epochs)
    for step, (inputs, labels) in enumerate(feed.batches(retain, settings.batch_size, settings.epochs)):
        multiplier = settings.multipliers[step * len(settings.multipliers) // steps]
        loss = cross_entropy(feed.outputs(student, inputs), labels)
        descend(optimiser, loss, settings.learning_rate * multiplier, on_gradients=slow_kept)
