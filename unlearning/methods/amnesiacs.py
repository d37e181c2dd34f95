"""Amnesiacs: reset the two layers that retraining changes most, then train on the original's answers and on the labels.

Sixth place of the NeurIPS 2023 machine unlearning challenge. The first convolution and the classifier, whose
weights differed most between original and retrained models, are drawn anew. A first phase distils the original's
softened answers (KL at T = 5); a second trains on the retain set with cross-entropy, cross-entropy to the
original's soft answers, and the same KL, under a falling rate.

Cost: `distil_epochs` + `epochs` passes through student (backward) and original (forward); the forget set is not
read. Defaults: the team's (3 epochs at 9e-4, 3 epochs at 1e-3 cosine, T 5). The team distilled on a validation set;
a method here has none, so the retain set takes its place. Interpretations: soft answers at T = 1, equal weights,
the cosine per step. Known failure: the middle layers keep what they learned, and the original as teacher returns
some of what was to be forgotten.
"""

import dataclasses

import torch
from torch import nn
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
    """

    epochs: float = ranged(3.0, 0.0, 1_000.0)
    learning_rate: float = ranged(1e-3, 0.0, 10.0)
    schedule: str = choice("cosine", *SCHEDULES)
    distil_epochs: float = ranged(3.0, 0.0, 1_000.0)
    distil_rate: float = ranged(9e-4, 0.0, 10.0)
    temperature: float = ranged(5.0, 1e-3, 1e3)


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
            loss = distil(feed.outputs(student, inputs), feed.teach(teacher, inputs), settings.temperature)
            descend(optimiser, loss, settings.distil_rate)
        optimiser = sgd(student, settings)
        steps = feed.batches(retain, settings.batch_size, settings.epochs)
        for (inputs, labels), rate in zip(steps, rates(settings, len(retain)), strict=True):
            outputs, taught = feed.outputs(student, inputs), feed.teach(teacher, inputs)
            hard = cross_entropy(outputs, labels)
            soft = cross_entropy(outputs, taught.softmax(dim=1))
            descend(optimiser, hard + soft + distil(outputs, taught, settings.temperature), rate)
        return student
