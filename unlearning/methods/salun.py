"""SalUn: random labels, but only the weights that matter most to the forget set may move.

Fan et al., "SalUn: Empowering Machine Unlearning via Gradient-based Weight Saliency", arXiv 2310.12508, §4.
Saliency is the magnitude of the gradient of −CE on the forget set; the weights above its global median form the
mask. The network is then trained as in random label, with labels drawn anew in every epoch, and every weight outside
the mask stays what it was, bit for bit: it is put back after each step, so neither weight decay nor momentum can move
it.

Cost: one pass over the forget set for the saliency, then `epochs` passes over both sets. Defaults: the authors'
(mask 0.5, 0.013, 10 epochs). Interpretations: the saliency is taken in float32; both sets are mixed, as the authors'
code (OPTML-Group/Unlearn-Saliency) does for CIFAR-100, while for CIFAR-10 it takes the forget set first in every
epoch. Known failure: random label's.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearning.methods.random_label import relabelled_batches
from unlearning.procedures.feeding import Feed, count_classes, descend, feeding, needed, rates, sgd
from unlearning.procedures.masks import largest_of_all
from unlearning.procedures.settings import DescentSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class SalUnSettings(DescentSettings):
    """The authors' values.

    Attributes:
        salient_share: share of all weights, the most salient ones, that may move.
    """

    epochs: float = ranged(10.0, 0.0, 1_000.0)
    learning_rate: float = ranged(0.013, 0.0, 10.0)
    salient_share: float = ranged(0.5, 0.0, 1.0)


def salun(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: SalUnSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model trained on `retain` and a relabelled `forget` in its salient weights only."""
    forget = needed(forget)
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        masks = largest_of_all(saliency(student, forget, settings, feed), settings.salient_share)
        frozen = {name: parameter.detach().clone() for name, parameter in student.named_parameters()}
        optimiser = sgd(student, settings)
        steps = relabelled_batches(forget, retain, count_classes(model, retain), settings, feed)
        for (inputs, labels), rate in zip(steps, rates(settings, len(retain) + len(forget)), strict=True):
            descend(optimiser, cross_entropy(feed.outputs(student, inputs), labels), rate)
            put_back(student, frozen, masks)
        return student


def saliency(student: nn.Module, forget: Examples, settings: SalUnSettings, feed: Feed) -> dict[str, Tensor]:
    """Returns |∇(−CE)| summed over the forget set, by parameter name."""
    student.eval()
    student.zero_grad(set_to_none=True)
    for inputs, labels in feed.batches(forget, settings.batch_size):
        loss = -cross_entropy(student(inputs).float(), labels, reduction="sum")
        loss.backward()
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad.abs() for name, p in student.named_parameters()}
    student.zero_grad(set_to_none=True)
    student.train()
    return found


@torch.no_grad()
def put_back(student: nn.Module, frozen: dict[str, Tensor], masks: dict[str, Tensor]) -> None:
    """Returns every weight outside its mask the value it had."""
    for name, parameter in student.named_parameters():
        parameter.copy_(torch.where(masks[name], parameter, frozen[name]))
