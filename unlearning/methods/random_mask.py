"""Random mask: set half of every parameter to zero at random, then repair with Adam on the retain set.

Of a family of entries that came ninth in the NeurIPS 2023 machine unlearning challenge. The choice
does not depend on the forget set. What was learned of a subject is spread over all weights, and half of it is lost;
which half differs between runs, so results vary like those of independent trainings. Norms are excluded, because
activations would collapse.

Cost: `epochs` passes over the retain set; the forget set is not read. Defaults: the entry's (50 %, 5 epochs of Adam
at 1e-4, weight decay 1e-4, cosine). Interpretations: exactly half of each tensor, biases included; the cosine falls
per step. Known failure: narrow networks lose accuracy that a small budget does not bring back.
"""

import dataclasses

import torch
from torch import nn

from unlearning.procedures.feeding import Feed, adam, feeding, fit
from unlearning.procedures.modules import norm_parameters
from unlearning.procedures.settings import SCHEDULES, DescentSettings, choice, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomMaskSettings(DescentSettings):
    """The entry's values.

    Attributes:
        masked_share: share of each parameter set to zero.
    """

    epochs: float = ranged(5.0, 0.0, 1_000.0)
    learning_rate: float = ranged(1e-4, 0.0, 10.0)
    weight_decay: float = ranged(1e-4, 0.0, 1.0)
    schedule: str = choice("cosine", *SCHEDULES)
    masked_share: float = ranged(0.5, 0.0, 1.0)


def random_mask(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: RandomMaskSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with a random share of its parameters zeroed, repaired on `retain`; `forget` is not read."""
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        zero_random(student, settings.masked_share, feed)
        fit(student, retain, feed, settings, optimiser=adam(student, settings))
        return student


@torch.no_grad()
def zero_random(student: nn.Module, share: float, feed: Feed) -> None:
    """Zeroes exactly round(share · size) entries of every parameter that belongs to no norm."""
    spared = norm_parameters(student)
    for name, parameter in student.named_parameters():
        if name not in spared:
            parameter.masked_fill_(feed.mask_like(parameter, share), 0.0)
