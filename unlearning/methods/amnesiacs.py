"""Amnesiacs: reset the two layers that retraining changes most, then train on the original's answers and on the labels.

Sixth place of the NeurIPS 2023 machine unlearning challenge. The first convolution and the classifier, whose
weights differed most between original and retrained models, are drawn anew. A first phase distils the original's
softened answers (KL at T = 5); a second trains on the retain set with cross-entropy, cross-entropy between both
networks' softened answers, and the same KL, with equal weights and under a falling rate.

Cost: `distil_epochs` + `epochs` passes through student (backward) and original (forward); the forget set is not
read. Defaults: the team's (3 epochs at 9e-4, 3 epochs at 1e-3 cosine, T 5 in all three, weight decay 5e-4, no factor
on the KL; as xcadet/deepunlearn has its code). `scale_divergence` and `soft_temperature` 1 make the original's answers
count 25 and 5 times as much, which keeps accuracy and returns more of what was to be forgotten. The team distilled on a
validation set; a method here has none, so the retain set takes its place. Interpretation: the cosine per step. Known
failure: the middle layers keep what they learned, and the original as teacher returns some of it.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearning.procedures.feeding import descend, distil, feeding, rates, sgd
from unlearning.procedures.modules import layout, reset
from unlearning.procedures.settings import SCHEDULES, DescentSettings, choice, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class AmnesiacsSettings(DescentSettings):
    """The team's values.

    Attributes:
        epochs, learning_rate: of the second phase.
        distil_epochs, distil_rate: of the first phase, whose rate is constant.
        temperature: T of the divergence.
        scale_divergence: whether the divergence is multiplied by T², so that its gradients do not shrink with T.
        soft_temperature: T of the cross-entropy between the networks' answers.
    """

    epochs: float = ranged(3.0, 0.0, 1_000.0)
    learning_rate: float = ranged(1e-3, 0.0, 10.0)
    schedule: str = choice("cosine", *SCHEDULES)
    distil_epochs: float = ranged(3.0, 0.0, 1_000.0)
    distil_rate: float = ranged(9e-4, 0.0, 10.0)
    weight_decay: float = ranged(5e-4, 0.0, 1.0)
    temperature: float = ranged(5.0, 1e-3, 1e3)
    scale_divergence: bool = False
    soft_temperature: float = ranged(5.0, 1e-3, 1e3)


def amnesiacs(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: AmnesiacsSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with first convolution and classifier learned anew on `retain`; `forget` is not read.

    Raises:
        MethodError: the network has no convolution.
    """
    with feeding(settings, seed, device) as feed:
        teacher = model.to(feed.device).eval()
        student = feed.student(model)
        parts = layout(student)
        for name in (parts.first_convolution, parts.classifier):
            reset(student.get_submodule(name))
        optimiser = sgd(student, settings)
        for inputs, _labels in feed.batches(retain, settings.batch_size, settings.distil_epochs):
            loss = divergence(feed.outputs(student, inputs), feed.teach(teacher, inputs), settings)
            descend(optimiser, loss, settings.distil_rate)
        optimiser = sgd(student, settings)
        steps = feed.batches(retain, settings.batch_size, settings.epochs)
        for (inputs, labels), rate in zip(steps, rates(settings, len(retain)), strict=True):
            outputs, taught = feed.outputs(student, inputs), feed.teach(teacher, inputs)
            hard = cross_entropy(outputs, labels)
            soft = cross_entropy(
                outputs / settings.soft_temperature, (taught / settings.soft_temperature).softmax(dim=1)
            )
            descend(optimiser, hard + soft + divergence(outputs, taught, settings), rate)
        return student


def divergence(student: Tensor, teacher: Tensor, settings: AmnesiacsSettings) -> Tensor:
    """Returns KL(teacher ‖ student) of softened logits `(b, n_classes)`, averaged over the batch."""
    scaled = distil(student, teacher, settings.temperature)
    return scaled if settings.scale_divergence else scaled / settings.temperature**2
