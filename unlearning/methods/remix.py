"""Remix: turn every filter towards a random mixture of its own layer's filters, then repair the network.

Ours; a variant of `dilute`. White noise in a kernel is mostly at frequencies that no filter uses: it costs accuracy and
forgets little. Here the noise of a layer consists of the layer's own filters. Its weights
W, one row a unit `(n_out, fan_in)`, become

    √(1 − a²) W + a · ‖W‖ / ‖RW‖ · RW,     R ~ N(0, 1) `(n_out, n_out)`

so the layer uses the same patterns, but each unit another mixture of them. Its norm stays, and a alone determines how
much is forgotten. What a network learned of single subjects is in the particular mixtures, layer upon layer, and every
run draws them anew. The repair is one cycle of a high rate,
settled batch norms and matched confidence.

Cost: `epochs` passes over the retain set and the finishing touches; the forget set is not read. Defaults: found on
the AT&T faces with subjects that are not reported on. Known failure: all runs start from one original and share its
peculiarities as far as a is below 1; with a near 1 one or two passes do not restore accuracy.
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
class RemixSettings(DescentSettings):
    """Our values.

    Attributes:
        mixed_share: a, the share of a layer's size that is other mixtures of its filters afterwards.
    """

    epochs: float = ranged(1.2, 0.0, 1_000.0)
    learning_rate: float = ranged(0.085, 0.0, 10.0)
    weight_decay: float = ranged(5e-4, 0.0, 1.0)
    schedule: str = choice("one-cycle", *SCHEDULES)
    settle: bool = True
    confidence: float = ranged(0.8, 0.0, 1.0)
    mixed_share: float = ranged(0.55, 0.0, 1.0)


def remix(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: RemixSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with its filters mixed, repaired on `retain`; `forget` is not read."""
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        mix_filters(student, settings.mixed_share, feed)
        fit(student, retain, feed, settings)
        return student


@torch.no_grad()
def mix_filters(student: nn.Module, share: float, feed: Feed) -> None:
    """Turns every layer's weight towards a random mixture of its rows of the same norm; biases and norms stay."""
    if share == 0.0:
        return
    for weight in layer_weights(student).values():
        rows = weight.detach().flatten(1)  # (n_out, fan_in)
        mixture = feed.normal_like(rows.new_empty(len(rows), len(rows)), 1.0) @ rows
        size, mixed = float(rows.norm()), float(mixture.norm())
        if mixed == 0.0:
            continue
        weight.mul_(math.sqrt(1.0 - share**2)).add_(mixture.view(weight.shape), alpha=share * size / mixed)
