"""CF-k and EU-k: train only the last k blocks on the retain set, from where they are or from scratch.

Goel et al., "Towards Adversarial Evaluations for Inexact Machine Unlearning", arXiv 2201.06640: *catastrophically
forgetting* (CF-k) goes on training the last k blocks, *exact unlearning* (EU-k) draws them anew first. The frozen
front keeps all it learned. Known failure: subjects memorised in early layers stay memorised.

Blocks are read from the graph (`unlearning.procedures.modules`); the classifier is trained along and not counted.
Frozen blocks keep their batch statistics.

Cost: `epochs` passes over the retain set, backward through the last blocks only. Defaults: k 1, 0.01, 10 epochs.
"""

import dataclasses
import itertools

import torch
from torch import nn

from unlearning.errors import MethodError
from unlearning.procedures.feeding import feeding, fit
from unlearning.procedures.modules import layout, reset
from unlearning.procedures.settings import DescentSettings, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastBlocksSettings(DescentSettings):
    """Cross-entropy on the retain set in the last blocks.

    Attributes:
        k: how many blocks, counted from the end, are trained beside the classifier.
    """

    epochs: float = ranged(10.0, 0.0, 1_000.0)
    learning_rate: float = ranged(0.01, 0.0, 10.0)
    k: int = ranged(1, 0, 1_000)


def cf_k(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: LastBlocksSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with its last k blocks trained further on `retain`; `forget` is not read."""
    return _train_last(model, retain, settings, seed, device, anew=False)


def eu_k(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: LastBlocksSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns the model with its last k blocks drawn anew and trained on `retain`; `forget` is not read."""
    return _train_last(model, retain, settings, seed, device, anew=True)


def last_modules(model: nn.Module, k: int) -> tuple[str, ...]:
    """Returns the names of the modules with parameters in the last k blocks and the classifier's part.

    Raises:
        MethodError: the network has fewer blocks.
    """
    parts = layout(model)
    if k > len(parts.blocks):
        raise MethodError(
            f"Expected k={k} in [0, {len(parts.blocks)}], the number of blocks of {type(model).__name__}."
        )
    last = parts.blocks[len(parts.blocks) - k :]
    return (*itertools.chain.from_iterable(last), *parts.head)


def _train_last(
    model: nn.Module,
    retain: Examples,
    settings: LastBlocksSettings,
    seed: int,
    device: str | torch.device,
    *,
    anew: bool,
) -> nn.Module:
    names = last_modules(model, settings.k)
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        student.eval().requires_grad_(False)
        for name in names:
            module = student.get_submodule(name)
            if anew:
                reset(module)
            module.train().requires_grad_(True)
        fit(student, retain, feed, settings)
        return student.requires_grad_(True)
