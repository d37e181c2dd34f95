"""Fine-tuning: continue training on the retain set.

The simplest baseline, and the last part of most methods of the competition. What the retain set does not contradict
stays, so memorised subjects remain detectable at small learning rates; large ones forget more and cost accuracy.

Cost: `epochs` passes over the retain set. Defaults: the official scoring code's
(google-deepmind/unlearning_evaluation), one epoch of SGD at 1e-3; Unlearn-Sparse (arXiv 2304.04934) uses ten at
0.01.
"""

import dataclasses

import torch
from torch import nn

from unlearning.procedures.feeding import feeding, fit
from unlearning.procedures.settings import DescentSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings(DescentSettings):
    """Cross-entropy on the retain set."""

    epochs: float = ranged(1.0, 0.0, 1_000.0)
    learning_rate: float = ranged(1e-3, 0.0, 10.0)


def finetune(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: FinetuneSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model trained further on `retain`; `forget` is not read."""
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        fit(student, retain, feed, settings)
        return student
