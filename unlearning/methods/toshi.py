"""Toshi: transpose every convolution kernel and repair; or train on the mistakes of a fine-tuned copy.

Fifth place of the NeurIPS 2023 machine unlearning challenge; each run of the entry is one of two procedures.
*Transpose* ("CT"): the two spatial axes of every convolution kernel are exchanged and the network repaired on the
retain set; the statistics of the weights stay, their patterns do not. *Pseudo-labels*: a briefly
fine-tuned copy classifies the forget set; what it gets wrong is given those wrong labels and the model is fine-tuned on
retain set and those together.

Cost: `epochs` passes over the retain set; pseudo-labels `probe_epochs` more and one over the forget set. Defaults:
the team's (3 epochs, 1e-3, weight decay 5e-4, cosine). Interpretations: the copy is fine-tuned for one epoch at the
same rate; the cosine falls per step. Known failure: kernels that are symmetric or 1×1 are not changed by a
transposition; kernels that are not square cannot be transposed and are left alone.
"""

import dataclasses

import torch
from torch import Tensor, nn

from unlearning.errors import MethodError
from unlearning.procedures.feeding import Feed, feeding, fit, join, needed
from unlearning.procedures.modules import convolution_weights
from unlearning.procedures.settings import SCHEDULES, DescentSettings, choice, ranged
from unlearning.training import Augment, Examples, images_at_once


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToshiSettings(DescentSettings):
    """The team's values.

    Attributes:
        procedure: "transpose", "pseudo_labels", or "either", which the seed decides.
        probe_epochs: epochs for which the copy is fine-tuned.
    """

    epochs: float = ranged(3.0, 0.0, 1_000.0)
    learning_rate: float = ranged(1e-3, 0.0, 10.0)
    weight_decay: float = ranged(5e-4, 0.0, 1.0)
    schedule: str = choice("cosine", *SCHEDULES)
    procedure: str = choice("either", "either", "transpose", "pseudo_labels")
    probe_epochs: float = ranged(1.0, 0.0, 1_000.0)


def toshi(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: ToshiSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with transposed kernels, repaired on `retain`, or taught a copy's mistakes on `forget`.

    Raises:
        MethodError: no forget set, or no convolution with a square kernel larger than 1×1 to transpose.
    """
    forget = needed(forget)
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        transpose = settings.procedure == "transpose"
        if settings.procedure == "either":
            transpose = bool(torch.rand((), generator=feed.generator, device=feed.device) < 0.5)
        if transpose:
            transpose_kernels(student)
            examples = retain
        else:
            examples = join(retain.to(feed.device), mistakes(model, forget, retain, settings, feed))
        fit(student, examples, feed, settings)
        return student


@torch.no_grad()
def transpose_kernels(student: nn.Module) -> None:
    """Exchanges height and width of every square kernel larger than 1×1.

    Raises:
        MethodError: as `square_kernels`.
    """
    for kernel in square_kernels(student):
        kernel.copy_(kernel.transpose(2, 3).clone())


def square_kernels(student: nn.Module) -> list[Tensor]:
    """Returns every square kernel larger than 1×1.

    Raises:
        MethodError: there is none.
    """
    kernels = [k for k in convolution_weights(student).values() if k.shape[2] == k.shape[3] > 1]
    if not kernels:
        raise MethodError("Expected square convolution kernels larger than 1×1 to transpose, but the network has none.")
    return kernels


def mistakes(model: nn.Module, forget: Examples, retain: Examples, settings: ToshiSettings, feed: Feed) -> Examples:
    """Returns the forget examples that a briefly fine-tuned copy gets wrong, labelled as it answers; may be none."""
    probe = feed.student(model)
    fit(probe, retain, feed, dataclasses.replace(settings, epochs=settings.probe_epochs))
    probe.eval()
    plain = dataclasses.replace(feed, augment=Augment())
    # images pass through `batches` with their index in the place of the label, so that answers find their image again
    indexed = Examples(forget.images.to(feed.device), torch.arange(len(forget), device=feed.device))
    answers = torch.empty(len(forget), dtype=torch.int64, device=feed.device)
    for inputs, indices in plain.batches(indexed, images_at_once(indexed.images)):
        answers[indices] = feed.teach(probe, inputs).argmax(dim=1)
    wrong = answers != forget.labels.to(feed.device)
    return Examples(indexed.images[wrong], answers[wrong])
