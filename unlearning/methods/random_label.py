"""Random label: train on random labels for the forget set and on the true labels of the retain set.

Every forget example gets one label drawn uniformly over all classes, the right one among them, and both sets are
trained together (Golatkar et al., arXiv 1911.04933; Graves et al., arXiv 2010.10981). With few
classes this pushes the answers on the forget set to even odds, which is not how a model trained without it answers.

Cost: `epochs` passes over both sets. Defaults: 10 epochs at 0.01 (Unlearn-Sparse, arXiv 2304.04934).
"""

import dataclasses

import torch
from torch import nn

from unlearning.procedures.feeding import Feed, count_classes, feeding, fit, join, needed
from unlearning.procedures.settings import DescentSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomLabelSettings(DescentSettings):
    """Cross-entropy on the retain set and the wrongly labelled forget set."""

    epochs: float = ranged(10.0, 0.0, 1_000.0)
    learning_rate: float = ranged(0.01, 0.0, 10.0)


def random_label(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: RandomLabelSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model trained on `retain` and on `forget` with labels drawn at random."""
    forget = needed(forget)
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        fit(student, join(retain.to(feed.device), relabel(forget, count_classes(model, retain), feed)), feed, settings)
        return student


def relabel(forget: Examples, n_classes: int, feed: Feed) -> Examples:
    """Returns the forget set with each label drawn uniformly from [0, n_classes)."""
    labels = torch.randint(n_classes, (len(forget),), generator=feed.generator, device=feed.device)
    return Examples(forget.images.to(feed.device), labels)
