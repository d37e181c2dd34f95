"""Fanchuan: push the answers on the forget set to uniform, then separate its logits from the retain set's in rounds.

First place of the NeurIPS 2023 machine unlearning challenge. Phase one passes once over the forget set and
minimises KL(uniform ‖ softmax z). Phase two has rounds of two halves: the forget half pairs each forget batch with
a retain batch and minimises the mean of −log softmax(z_f · z_rᵀ / t) over the retain batch, a contrast in which
every retain example is wanted equally; the retain half is one epoch of cross-entropy.

Cost: in every round one pass over the retain set, one over the forget set and a forward pass of as many retain
batches. Defaults: the team's (5e-3 in phase one; 8 rounds; 3e-4 with cosine per step to 1e-6, t = 1.15; 4e-3 with
weight decay 1e-2 in the retain half, retain batches of 256). Interpretations: logits of the retain batch carry no
gradient; the cosine spans all forget halves. Known failure: with two classes logits lie on a line, and the contrast
has little to pull apart.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from unlearning.descent import FlatWeights
from unlearning.procedures.feeding import Feed, Momentum, cosine, descend, feeding, n_steps, needed
from unlearning.procedures.settings import ApproximateSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class FanchuanSettings(ApproximateSettings):
    """The team's values.

    Attributes:
        uniform_rate: learning rate of phase one.
        rounds: of phase two.
        contrast_rate, contrast_rate_end: learning rate of the forget halves, first and after the last.
        temperature: t of the contrast.
        retain_rate, retain_weight_decay: of the retain halves.
        momentum: of all three optimisers.
        forget_batch_size, retain_batch_size: examples a step.
    """

    uniform_rate: float = ranged(5e-3, 0.0, 10.0)
    rounds: int = ranged(8, 0, 1_000)
    contrast_rate: float = ranged(3e-4, 0.0, 10.0)
    contrast_rate_end: float = ranged(1e-6, 0.0, 10.0)
    temperature: float = ranged(1.15, 1e-3, 1e3)
    retain_rate: float = ranged(4e-3, 0.0, 10.0)
    retain_weight_decay: float = ranged(1e-2, 0.0, 1.0)
    momentum: float = ranged(0.9, 0.0, 0.9999)
    forget_batch_size: int = ranged(64, 2, 65_536)
    retain_batch_size: int = ranged(256, 2, 65_536)


def fanchuan(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: FanchuanSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model made uncertain on `forget`, contrasted with and repaired on `retain`."""
    forget = needed(forget)
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        weights = FlatWeights(student)
        unlearn_to_uniform(student, weights, forget, settings=settings, feed=feed)
        pull_apart = Momentum(weights, momentum=settings.momentum, weight_decay=0.0)
        keep = Momentum(weights, momentum=settings.momentum, weight_decay=settings.retain_weight_decay)
        steps = settings.rounds * n_steps(len(forget), settings.forget_batch_size, 1.0)
        rates = cosine(settings.contrast_rate, steps, settings.contrast_rate_end)
        others = feed.endless(retain, settings.retain_batch_size)
        for _ in range(settings.rounds):
            for inputs, _labels in feed.batches(forget, settings.forget_batch_size):
                retained = feed.teach(student, next(others)[0])
                loss = contrast(feed.outputs(student, inputs), retained, settings.temperature)
                descend(pull_apart, loss, next(rates))
            for inputs, labels in feed.batches(retain, settings.retain_batch_size):
                descend(keep, cross_entropy(feed.outputs(student, inputs), labels), settings.retain_rate)
        return student


def unlearn_to_uniform(
    student: nn.Module, weights: FlatWeights, forget: Examples, *, settings: FanchuanSettings, feed: Feed
) -> None:
    """Phase one: a single pass over the forget set towards uniform answers."""
    optimiser = Momentum(weights, momentum=settings.momentum, weight_decay=0.0)
    for inputs, _labels in feed.batches(forget, settings.forget_batch_size):
        descend(optimiser, divergence_from_uniform(feed.outputs(student, inputs)), settings.uniform_rate)


def divergence_from_uniform(logits: Tensor) -> Tensor:
    """Returns KL(uniform ‖ softmax z) in nats, averaged over the batch, of logits `(b, n_classes)`."""
    n_classes = logits.shape[1]
    uniform = torch.full_like(logits, 1.0 / n_classes)
    return kl_div(log_softmax(logits, dim=1), uniform, reduction="batchmean")


def contrast(forgotten: Tensor, retained: Tensor, temperature: float) -> Tensor:
    """Returns the mean of −log softmax(z_f · z_rᵀ / t) over all pairs.

    Args:
        forgotten: logits `(b_f, n_classes)` with gradient.
        retained: logits `(b_r, n_classes)`; no gradient flows into them.
    """
    similarity = forgotten @ retained.detach().T / temperature  # (b_f, b_r)
    return -log_softmax(similarity, dim=1).mean()
