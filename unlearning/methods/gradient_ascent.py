"""Gradient ascent on the cross-entropy of the forget set.

The oldest idea (Golatkar et al., arXiv 1911.04933, call it "negative gradient"). It overshoots: the forget set's
margins move far below those of retrained models, which an audit detects at once, and accuracy falls with them because
nothing holds the retain set.

Cost: `epochs` passes over the forget set, the cheapest of all. Default rate from the range 1e-4 … 1e-3 that
comparisons use (Unlearn-Sparse, arXiv 2304.04934: 5 epochs).
"""

import dataclasses

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from unlearning.procedures.feeding import descend, feeding, needed, rates, sgd
from unlearning.procedures.settings import DescentSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class GradientAscentSettings(DescentSettings):
    """−CE on the forget set."""

    epochs: float = ranged(5.0, 0.0, 1_000.0)
    learning_rate: float = ranged(5e-4, 0.0, 10.0)


def gradient_ascent(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: GradientAscentSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model driven up the loss of `forget`; `retain` is not read."""
    forget = needed(forget)
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        optimiser = sgd(student, settings)
        steps = feed.batches(forget, settings.batch_size, settings.epochs)
        for (inputs, labels), rate in zip(steps, rates(settings, len(forget)), strict=True):
            descend(optimiser, -cross_entropy(feed.outputs(student, inputs), labels), rate)
        return student
