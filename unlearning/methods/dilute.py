"""Dilute: mix every weight with noise of its own tensor's spread, then bring the network back under one warm restart.

Ours; in the family of Seif (noise, then repair) and of shrink-and-perturb (Ash and Adams, arXiv 1910.08475). Each
tensor w of a convolution, linear layer or attention becomes √(1 − a²) w + a σ(w) n, n ~ N(0, 1): its variance
stays, so activations keep their size whatever the layer's width, and a is the one number that says how much is
forgotten, the same for thin and thick layers. The repair is one cycle of a high rate, settled batch norms and
matched confidence.

Cost: `epochs` passes over the retain set and the finishing touches; the forget set is not read. Defaults: found on
the AT&T faces with subjects that are not reported on. Known failure: one a for all subjects. Subjects on whom
retrained models differ much need more noise than utility allows.
"""

import dataclasses
import math

import torch
from torch import nn

from unlearning.procedures.feeding import Feed, feeding, fit
from unlearning.procedures.modules import layer_weights
from unlearning.procedures.settings import SCHEDULES, DescentSettings, choice, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiluteSettings(DescentSettings):
    """Our values.

    Attributes:
        noise_share: a, the share of a tensor's standard deviation that is noise afterwards.
    """

    epochs: float = ranged(2.25, 0.0, 1_000.0)
    learning_rate: float = ranged(0.075, 0.0, 10.0)
    weight_decay: float = ranged(5e-4, 0.0, 1.0)
    schedule: str = choice("one-cycle", *SCHEDULES)
    settle: bool = True
    confidence: float = ranged(0.8, 0.0, 1.0)
    noise_share: float = ranged(0.6, 0.0, 1.0)


def dilute(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: DiluteSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with its weights diluted, repaired on `retain`; `forget` is not read."""
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        add_noise(student, settings.noise_share, feed)
        fit(student, retain, feed, settings)
        return student


@torch.no_grad()
def add_noise(student: nn.Module, share: float, feed: Feed) -> None:
    """Turns every layer's weight towards noise without changing its variance; biases and norms stay."""
    for weight in layer_weights(student).values():
        noise = feed.normal_like(weight, share * float(weight.detach().std(correction=0)))
        weight.mul_(math.sqrt(1.0 - share**2)).add_(noise)
