"""SCRUB: a student that follows its teacher on the retain set and moves away from it on the forget set; and SCRUB+R.

Kurmanji et al., "Towards Unbounded Machine Unlearning", arXiv 2302.09880, §3. The teacher is the original model and
never changes. In each of the first `max_epochs` epochs a pass over the forget set climbs KL(teacher ‖ student);
every epoch has a pass over the retain set that descends γ CE + α KL(teacher ‖ student). *Rewinding* keeps a
checkpoint after every epoch and returns the one whose error on the forget set is nearest to the error on held-out
subjects.

Cost: `epochs` passes over the retain set (teacher and student), `max_epochs` over the forget set; +R one forward
pass over the forget set per epoch more. Defaults: the authors' (γ 1, α 0.5, T 4, 3 of 5 epochs climb, 5e-4, a tenth of
it after epochs 3, 5 and 9, weight decay 5e-4, forget batches of 16). Their notebooks (meghdadk/SCRUB) differ from each
other: α 0.5 or 0.001, 3 to 10 epochs, decays after 3, 5, 9 or 5, 8, 9, SGD or, in the one for small sets, Adam with
weight decay 0.1; SGD here. *Smoothing*, which their first version had and their present one has not, adds the distance
from an average of the student's weights, which is the teacher's for as long as the average does not move (their tenth
epoch). The authors take the error to rewind to from a validation set; a method here has none, so it is a setting: one
minus the test accuracy of retrained models. Known failure: moves too far on subjects who resemble those of the retain
set.
"""

import copy
import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearning.procedures.feeding import Feed, descend, distil, feeding, needed, sgd
from unlearning.procedures.settings import DescentSettings, ranged
from unlearning.training import Examples, images_at_once


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScrubSettings(DescentSettings):
    """The authors' values.

    Attributes:
        max_epochs: epochs, from the first, that climb on the forget set.
        gamma: weight of cross-entropy on the retain set.
        alpha: weight of the divergence from the teacher on the retain set.
        temperature: T of both divergences.
        forget_batch_size: forget examples a step.
        decay_epochs: epochs, counted from 1, after each of which the rate is multiplied by `decay_rate`.
        smoothing: weight of Σ ‖θ − θ_teacher‖ over parameter tensors in every loss.
    """

    epochs: int = ranged(5, 0, 1_000)
    learning_rate: float = ranged(5e-4, 0.0, 10.0)
    max_epochs: int = ranged(3, 0, 1_000)
    gamma: float = ranged(1.0, 0.0, 1e3)
    alpha: float = ranged(0.5, 0.0, 1e3)
    temperature: float = ranged(4.0, 1e-3, 1e3)
    weight_decay: float = ranged(5e-4, 0.0, 1.0)
    forget_batch_size: int = ranged(16, 2, 65_536)
    decay_epochs: tuple[float, ...] = ranged((3, 5, 9), 0, 1_000)
    decay_rate: float = ranged(0.1, 0.0, 1.0)
    smoothing: float = ranged(0.0, 0.0, 1e3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScrubRSettings(ScrubSettings):
    """The authors' values, and where to rewind to.

    Attributes:
        unseen_error: share of wrong answers of retrained models on held-out subjects.
    """

    unseen_error: float = ranged(0.1, 0.0, 1.0)


def scrub(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: ScrubSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the student after the last epoch."""
    with feeding(settings, seed, device) as feed:
        return _epochs(model, needed(forget), retain, settings, feed)[-1]


def scrub_r(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: ScrubRSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the student of the epoch whose error on `forget` is nearest to `unseen_error`, the latest of equals."""
    forget = needed(forget)
    with feeding(settings, seed, device) as feed:
        students = _epochs(model, forget, retain, settings, feed, keep_all=True)
        distances = [abs(error(student, forget, feed) - settings.unseen_error) for student in students]
        nearest = min(range(len(students)), key=lambda i: (distances[i], -i))
        return students[nearest]


def error(student: nn.Module, examples: Examples, feed: Feed) -> float:
    """Returns the share of wrong answers on examples as they are, in eval mode."""
    plain = dataclasses.replace(feed, augment=type(feed.augment)())
    student.eval()
    wrong = sum(
        int((feed.teach(student, inputs).argmax(dim=1) != labels).sum())
        for inputs, labels in plain.batches(examples, images_at_once(examples.images))
    )
    return wrong / len(examples)


def _epochs(
    model: nn.Module, forget: Examples, retain: Examples, settings: ScrubSettings, feed: Feed, *, keep_all: bool = False
) -> list[nn.Module]:
    """Returns the student after the last epoch, or after every epoch."""
    teacher = model.to(feed.device).eval()
    student = feed.student(model)
    optimiser = sgd(student, settings)  # the student's parameters only: a moving teacher teaches nothing
    kept = []
    for epoch in range(1, settings.epochs + 1):
        rate = settings.learning_rate * settings.decay_rate ** sum(epoch > last for last in settings.decay_epochs)
        if epoch <= settings.max_epochs:
            for inputs, _labels in feed.batches(forget, settings.forget_batch_size):
                apart = distil(feed.outputs(student, inputs), feed.teach(teacher, inputs), settings.temperature)
                descend(optimiser, smoothing(student, teacher, settings) - apart, rate)
        for inputs, labels in feed.batches(retain, settings.batch_size):
            outputs = feed.outputs(student, inputs)
            near = distil(outputs, feed.teach(teacher, inputs), settings.temperature)
            loss = settings.gamma * cross_entropy(outputs, labels) + settings.alpha * near
            descend(optimiser, loss + smoothing(student, teacher, settings), rate)
        if keep_all:
            kept.append(copy.deepcopy(student))
    return kept or [student]


def smoothing(student: nn.Module, teacher: nn.Module, settings: ScrubSettings) -> Tensor | float:
    """Returns smoothing · Σ ‖θ − θ_teacher‖ over parameter tensors."""
    if settings.smoothing == 0.0:
        return 0.0
    pairs = zip(student.parameters(), teacher.parameters(), strict=True)
    return settings.smoothing * torch.stack([torch.linalg.vector_norm(p - q.detach()) for p, q in pairs]).sum()
