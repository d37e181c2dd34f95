"""Spare models: a model trained without the subject is there before the subject asks to be forgotten.

Reference models are trained without a block of subjects anyway. Whoever keeps the weights of one more such model for
each block, a *spare*, has nothing to train when somebody of the block asks to be forgotten: `spare` hands it over as it
is. It never learned from the block's other subjects either; `catch_up` trains it further on all that is retained, these
included. Both are exact: no weight ever depended on the forget set.

The model both start from is therefore the spare and not the model in service. This is retraining only what the data to
be forgotten touched, ahead of time (SISA, Bourtoule et al. 2021, arXiv 1912.03817, on shards; here on one model).

Cost: `spare` nothing, `catch_up` its `epochs` passes over the retain set. Defaults: four passes, chosen on drawn faces
(`benchmarks/spares.py`), where a fifth of a training brings a third of the way back on the block's other subjects while
no accuracy is lost elsewhere.
"""

import copy
import dataclasses

import torch
from torch import nn

from unlearning.procedures.feeding import feeding, fit
from unlearning.procedures.settings import SCHEDULES, DescentSettings, Settings, choice, ranged
from unlearning.training import Examples


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpareSettings(Settings):
    """No settings: the spare is taken as it is."""


def spare(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: SpareSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns a copy of `model`, a spare; neither set is read."""
    return copy.deepcopy(model)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CatchUpSettings(DescentSettings):
    """Cross-entropy on the retain set."""

    epochs: float = ranged(4.0, 0.0, 1_000.0)
    learning_rate: float = ranged(2e-2, 0.0, 10.0)
    schedule: str = choice("cosine", *SCHEDULES)


def catch_up(
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    settings: CatchUpSettings,
    seed: int,
    device: str | torch.device,
) -> nn.Module:
    """Returns `model`, a spare, trained further on `retain`; `forget` is not read."""
    with feeding(settings, seed, device) as feed:
        student = feed.student(model)
        fit(student, retain, feed, settings)
        return student
