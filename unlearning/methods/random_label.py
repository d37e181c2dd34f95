"""Random label: train on random labels for the forget set and on the true labels of the retain set.

In every epoch each forget example gets a label drawn uniformly over all classes, the right one among them, and both
sets are trained together (Golatkar et al., arXiv 1911.04933; Graves et al., arXiv 2010.10981; drawn anew in every
epoch as by OPTML-Group/Unlearn-Saliency). With few classes this pushes the answers on the forget set to even odds,
which is not how a model trained without it answers.

Cost: `epochs` passes over both sets. Defaults: 10 epochs at 0.01 (Unlearn-Sparse, arXiv 2304.04934).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearning.procedures.feeding import Feed, count_classes, descend, feeding, join, n_steps, needed, rates, sgd
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
        optimiser = sgd(student, settings)
        steps = relabelled_batches(forget, retain, count_classes(model, retain), settings, feed)
        for (inputs, labels), rate in zip(steps, rates(settings, len(retain) + len(forget)), strict=True):
            descend(optimiser, cross_entropy(feed.outputs(student, inputs), labels), rate)
        return student


def relabelled_batches(
    forget: Examples, retain: Examples, n_classes: int, settings: DescentSettings, feed: Feed
) -> Iterator[tuple[Tensor, Tensor]]:
    """Returns shuffled batches of both sets for the settings' epochs; each epoch draws labels for `forget` anew."""
    kept = retain.to(feed.device)
    passes = (
        feed.batches(join(kept, relabel(forget, n_classes, feed)), settings.batch_size)
        for _ in range(math.ceil(settings.epochs))
    )
    steps = n_steps(len(retain) + len(forget), settings.batch_size, settings.epochs)
    return itertools.islice(itertools.chain.from_iterable(passes), steps)


def relabel(forget: Examples, n_classes: int, feed: Feed) -> Examples:
    """Returns the forget set with each label drawn uniformly from [0, n_classes)."""
    labels = torch.randint(n_classes, (len(forget),), generator=feed.generator, device=feed.device)
    return Examples(forget.images.to(feed.device), labels)
