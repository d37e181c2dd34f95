"""Exact retraining: a new model by the original's recipe from the retain set alone.

The definition of forgetting rather than an approximation: nothing of the forget set can remain, because the model is
trained without it. Every ladder ends with it.

Cost: that of the recipe, relative to which all other costs are given. Hyper-parameters: the recipe's. The original's
weights are not read; only its number of classes is.
"""

import dataclasses

import torch
from torch import nn

from unlearning.errors import MethodError
from unlearning.procedures.cost import report
from unlearning.procedures.feeding import count_classes
from unlearning.procedures.settings import Settings
from unlearning.training import Examples, train


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrainSettings(Settings):
    """No settings but the recipe."""


def retrain(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: RetrainSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns a fresh model trained on `retain` only.

    Raises:
        MethodError: no recipe in the settings.
    """
    if settings.recipe is None:
        raise MethodError("Exact retraining needs the recipe of the original model in its settings.")
    trained = train(settings.recipe, retain, n_classes=count_classes(model, retain), seed=seed, device=device)
    report(n_forward=trained.n_forward, n_backward=trained.n_backward)
    return trained.model
