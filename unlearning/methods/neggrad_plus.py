"""NegGrad+: descend on the retain set and climb on the forget set at the same time.

One loss, α CE_retain − (1 − α) CE_forget, on a retain batch and a forget batch a step (Kurmanji et al., arXiv
2302.09880, §4). The retain term holds accuracy; the forget term has no lower bound, so margins on the forget set end
where the two terms balance.

Cost: `epochs` passes over the retain set, and a forget batch with every retain batch. Defaults: α 0.95, 0.01, 5
epochs (5 to 10 are used).
"""

import dataclasses

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from unlearning.procedures.feeding import descend, feeding, needed, rates, sgd
from unlearning.procedures.settings import DescentSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class NegGradPlusSettings(DescentSettings):
    """α CE_retain − (1 − α) CE_forget.

    Attributes:
        alpha: weight of the retain set.
    """

    epochs: float = ranged(5.0, 0.0, 1_000.0)
    learning_rate: float = ranged(0.01, 0.0, 10.0)
    alpha: float = ranged(0.95, 0.0, 1.0)


def neggrad_plus(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: NegGradPlusSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model trained down on `retain` and up on `forget`."""
    forget = needed(forget)
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        optimiser = sgd(student, settings)
        forgetting = feed.endless(forget, settings.batch_size)
        steps = feed.batches(retain, settings.batch_size, settings.epochs)
        for (inputs, labels), rate in zip(steps, rates(settings, len(retain)), strict=True):
            forget_inputs, forget_labels = next(forgetting)
            keep = cross_entropy(feed.outputs(student, inputs), labels)
            forgotten = cross_entropy(feed.outputs(student, forget_inputs), forget_labels)
            descend(optimiser, settings.alpha * keep - (1.0 - settings.alpha) * forgotten, rate)
        return student
