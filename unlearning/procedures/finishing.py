"""Two finishing steps that every approximate method has in its settings, off by default.

*Settling*: after a short, violent repair the running statistics of batch norms lag far behind the weights, and accuracy
with them. One pass over the retain set replaces them by exact averages. *Confidence*: a short repair leaves margins
too small everywhere, which an audit detects. One factor on the classifier brings the median
margin on the retain set to where the original has it. Neither reads the forget set.

Cost: settling a forward pass over the retain set, 2,048 examples of it at most; confidence one through each of the two
networks over 128 examples at most, which is enough for a median.
"""

import dataclasses

import torch
from torch import Tensor, nn

from unlearning.procedures.feeding import Feed, feeding
from unlearning.procedures.modules import layout
from unlearning.procedures.settings import ApproximateSettings
from unlearning.training import Augment, Examples, images_at_once

_SETTLED_ON, _COMPARED_ON = 2048, 128
_LARGEST_FACTOR = 4.0  # a margin near zero says nothing about confidence, only that the repair failed


def finish(
    student: nn.Module,
    original: nn.Module,
    retain: Examples,
    *,
    settings: ApproximateSettings,
    seed: int,
    device: torch.device,
) -> None:
    """Applies the finishing steps of the settings to `student`, in place."""
    if not settings.settle and settings.confidence == 0.0:
        return
    with feeding(settings, seed, device) as feed:
        plain = dataclasses.replace(feed, augment=Augment())
        if settings.settle:
            settle(student, retain, plain)
        if settings.confidence > 0.0:
            match_confidence(student, original, retain, power=settings.confidence, feed=plain)


@torch.no_grad()
def settle(student: nn.Module, retain: Examples, feed: Feed) -> None:
    """Replaces the running statistics of batch norms by averages over the retain set; without such norms, nothing."""
    norms = [module for module in student.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    student.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    for inputs, _labels in feed.batches(sample(retain, _SETTLED_ON, feed), images_at_once(retain.images)):
        feed.outputs(student, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


@torch.no_grad()
def match_confidence(student: nn.Module, original: nn.Module, retain: Examples, *, power: float, feed: Feed) -> None:
    """Multiplies the classifier by (original's median margin / student's) ^ power, at most by 4 and at least by ¼."""
    student.eval()
    compared = sample(retain, _COMPARED_ON, feed)
    mine, wanted = median_margin(student, compared, feed), median_margin(original.eval(), compared, feed)
    if mine <= 0.0 or wanted <= 0.0:
        return
    factor = min(max(wanted / mine, 1.0 / _LARGEST_FACTOR), _LARGEST_FACTOR) ** power
    classifier = student.get_submodule(layout(student).classifier)
    for parameter in classifier.parameters():
        parameter.mul_(factor)


def sample(examples: Examples, n: int, feed: Feed) -> Examples:
    """Returns n examples drawn without replacement, or all if there are no more."""
    if len(examples) <= n:
        return examples
    return examples.subset(torch.randperm(len(examples), generator=feed.generator, device=feed.device)[:n].cpu())


def median_margin(model: nn.Module, examples: Examples, feed: Feed) -> float:
    """Returns the median of z_y − logsumexp over the other classes."""
    batches = feed.batches(examples, images_at_once(examples.images))
    found = [margins(feed.teach(model, inputs), labels) for inputs, labels in batches]
    return float(torch.cat(found).median())


def margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns z_y − logsumexp_{j≠y} z_j `(b,)` of logits `(b, n_classes)`."""
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return logits.gather(1, labels[:, None]).squeeze(1) - others.logsumexp(dim=1)
