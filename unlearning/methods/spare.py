"""Spare models: a model that never saw the subject is there before the subject asks to be forgotten.

Reference models are trained without a block of subjects anyway. Whoever keeps the weights of one more such model for
each block, a *spare*, has nothing to train when somebody of the block asks to be forgotten: `spare` hands it over as it
is. It never learned from the block's other subjects either; `catch_up` trains it further on all that is retained, these
included. Both are exact: no weight ever depended on the forget set.

The model both start from is therefore the spare and not the model in service. This is retraining only what the data to
be forgotten touched, ahead of time (SISA, Bourtoule et al. 2021, arXiv 1912.03817, on shards; here on one model).

Cost: `spare` nothing, `catch_up` its `epochs` passes over the retain set. Defaults: one pass at a small rate; on the
AT&T faces more of it changes no accuracy that can be told from chance (`benchmarks/spares.py`).
"""

import copy
import dataclasses

import torch
from torch import nn

from unlearning.procedures.feeding import feeding, fit
from unlearning.procedures.settings import DescentSettings, Settings, ranged
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

    epochs: float = ranged(1.0, 0.0, 1_000.0)
    learning_rate: float = ranged(1e-2, 0.0, 10.0)


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
