"""L1-sparse: fine-tune under an L1 penalty that decreases to zero.

Jia et al., "Model Sparsity Can Simplify Machine Unlearning" (Unlearn-Sparse), arXiv 2304.04934, §4: the loss is CE
+ α(t) ‖θ‖₁ on the retain set, with α falling linearly from its start to zero over the run, so that the last epochs
repair the sparse network.

Cost: `epochs` passes over the retain set; the forget set is not read. Defaults: the authors' (α 3e-4, 0.01, 10
epochs). Interpretation: α falls per step. Known failure: that of fine-tuning; a larger α forgets more
and costs accuracy.
"""

import dataclasses

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from unlearning.procedures.feeding import descend, feeding, n_steps, rates, sgd
from unlearning.procedures.settings import DescentSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1SparseSettings(DescentSettings):
    """The authors' values.

    Attributes:
        alpha: weight of the penalty at the first step.
    """

    epochs: float = ranged(10.0, 0.0, 1_000.0)
    learning_rate: float = ranged(0.01, 0.0, 10.0)
    alpha: float = ranged(3e-4, 0.0, 1.0)


def l1_sparse(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: L1SparseSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model fine-tuned on `retain` under a fading L1 penalty; `forget` is not read."""
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        optimiser = sgd(student, settings)
        total = n_steps(len(retain), settings.batch_size, settings.epochs)
        steps = zip(
            feed.batches(retain, settings.batch_size, settings.epochs), rates(settings, len(retain)), strict=True
        )
        for step, ((inputs, labels), rate) in enumerate(steps):
            penalty = torch.stack([parameter.abs().sum() for parameter in student.parameters()]).sum()
            loss = cross_entropy(feed.outputs(student, inputs), labels) + fading(settings.alpha, step, total) * penalty
            descend(optimiser, loss, rate)
        return student


def fading(alpha: float, step: int, total: int) -> float:
    """Returns the penalty's weight at `step` of [0, total): falls linearly from `alpha` to 0 after the last."""
    return alpha * (1.0 - step / total)
