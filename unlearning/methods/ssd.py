"""SSD, selective synaptic dampening: shrink the weights that matter more to the forget set than to everything.

Foster et al., "Fast Machine Unlearning Without Retraining Through Selective Synaptic Dampening", arXiv 2308.07707,
§3. The diagonal of the Fisher information is estimated on the forget set (I_f) and on the whole training set (I_D);
where I_f > α I_D a weight is multiplied by min(λ I_D / I_f, 1), all others stay. No training happens.

Cost: one forward and backward pass over both sets and one more over the forget set. Defaults: the authors' (α 10, λ
1). The diagonal is the mean over batches of the squared gradient of a batch's mean loss, as the authors' code has
it; batches of one example give the definition. Known failure: α decides everything and its right value differs from
model to model.
"""

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from unlearning.procedures.feeding import Feed, feeding, join, n_steps, needed
from unlearning.procedures.settings import ApproximateSettings, ranged
from unlearning.training import Augment, Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class SSDSettings(ApproximateSettings):
    """The authors' values.

    Attributes:
        alpha: how much more a weight must matter to the forget set to be dampened.
        dampening: λ of the formula.
        batch_size: examples a gradient.
    """

    alpha: float = ranged(10.0, 0.0, 1e6)
    dampening: float = ranged(1.0, 0.0, 1e3)
    batch_size: int = ranged(64, 1, 65_536)


def ssd(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: SSDSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with the weights dampened that matter more to `forget` than to all examples."""
    forget = needed(forget)
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        forgotten = importance(student, forget, settings.batch_size, feed)
        everything = join(retain.to(feed.device), forget.to(feed.device))
        overall = importance(student, everything, settings.batch_size, feed)
        dampen(student, forgotten, overall, settings)
        return student


def importance(student: nn.Module, examples: Examples, batch_size: int, feed: Feed) -> dict[str, Tensor]:
    """Returns the Fisher information's diagonal by parameter name, in float32 and eval mode, on images as they are."""
    plain = dataclasses.replace(feed, augment=Augment())
    student.eval()
    found = {name: torch.zeros_like(parameter) for name, parameter in student.named_parameters()}
    for inputs, labels in plain.batches(examples, batch_size):
        student.zero_grad(set_to_none=True)
        loss = cross_entropy(student(inputs).float(), labels)
        loss.backward()
        for name, parameter in student.named_parameters():
            if parameter.grad is not None:
                found[name] += parameter.grad.square() / n_steps(len(examples), batch_size, 1.0)
    student.zero_grad(set_to_none=True)
    return found


@torch.no_grad()
def dampen(student: nn.Module, forgotten: dict[str, Tensor], overall: dict[str, Tensor], settings: SSDSettings) -> None:
    """Multiplies a weight by min(λ I_D / I_f, 1) where I_f > α I_D."""
    for name, parameter in student.named_parameters():
        chosen = forgotten[name] > settings.alpha * overall[name]
        factor = (settings.dampening * overall[name] / forgotten[name]).clamp(max=1.0)
        parameter.copy_(torch.where(chosen, parameter * factor, parameter))  # 0/0 is never chosen
