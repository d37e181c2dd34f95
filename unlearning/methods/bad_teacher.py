"""Bad teacher: learn from the original on the retain set and from a network that knows nothing on the forget set.

Chundawat et al., "Can Bad Teaching Induce Forgetting?", arXiv 2205.08096, §4. The student minimises the divergence
from a mixture of two teachers: the original for retain examples, a randomly initialised network for forget
examples; both answer in eval mode. The student learns the noise of one untrained network about the subject, not the
average answer of models trained without the subject.

Cost: per epoch both sets forward through both teachers and the student, backward through the student. Defaults: the
authors' (T 1, one epoch of Adam at 1e-4 on 30 % of the retain set). No labels are read. Differs from the authors'
code (vikram2000b/bad-teaching-unlearning): the divergence is averaged over the batch and multiplied by T²; theirs is
averaged over batch and classes without T², a constant factor that Adam does not feel.
"""

import copy
import dataclasses

import torch
from torch import nn

from unlearning.procedures.feeding import adam, descend, distil, feeding, join, needed, rates
from unlearning.procedures.modules import reset_all
from unlearning.procedures.settings import DescentSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class BadTeacherSettings(DescentSettings):
    """The authors' values.

    Attributes:
        temperature: T of the divergence.
        retain_share: share of the retain set, drawn at random, that is used.
    """

    epochs: float = ranged(1.0, 0.0, 1_000.0)
    learning_rate: float = ranged(1e-4, 0.0, 10.0)
    temperature: float = ranged(1.0, 1e-3, 1e3)
    retain_share: float = ranged(0.3, 0.0, 1.0)


def bad_teacher(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: BadTeacherSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the student of two teachers."""
    forget = needed(forget)
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        good = model.to(feed.device).eval()
        bad = copy.deepcopy(good)
        reset_all(bad)  # statistics of norms too
        chosen = torch.randperm(len(retain), generator=feed.generator, device=feed.device)
        kept = retain.to(feed.device).subset(chosen[: round(settings.retain_share * len(retain))].cpu())
        # whose lesson an example is stands in the place of its label
        lessons = join(
            Examples(kept.images, torch.zeros_like(kept.labels)),
            Examples(forget.images.to(feed.device), torch.ones_like(forget.labels).to(feed.device)),
        )
        optimiser = adam(student, settings)
        steps = feed.batches(lessons, settings.batch_size, settings.epochs)
        for (inputs, from_bad), rate in zip(steps, rates(settings, len(lessons)), strict=True):
            taught = torch.where(from_bad[:, None] == 1, feed.teach(bad, inputs), feed.teach(good, inputs))
            descend(optimiser, distil(feed.outputs(student, inputs), taught, settings.temperature), rate)
        return student
