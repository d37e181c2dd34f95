"""Search spaces of the methods' settings: for each method a first guess and a few ranges.

The authors' values are for another network, other data and six thousand steps; ours has a hundred. Every space keeps a
run near a sixth of retraining's cost. The guess is tried first, then the ranges are searched; `fixed`
settings do not vary. The search itself is in the service (`service/studies/tuning.py`), because its objective needs the
auditor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearning.errors import MethodError
from unlearning.methods import Settings, find_method


@dataclass(frozen=True)
class Range:
    """Numbers in [low, high]: on a logarithmic scale, in steps, or plainly; of a tuple every entry gets the number."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Space:
    """Settings of one method.

    Attributes:
        fixed: settings that differ from the authors' in every trial.
        guess: the first trial's value of every searched setting.
        ranges: what is searched, by the setting's name.
    """

    fixed: Mapping[str, Any]
    guess: Mapping[str, float]
    ranges: Mapping[str, Range]

    def settings(self, method: str, drawn: Mapping[str, float]) -> Settings:
        """The settings of a trial.

        Raises:
            MethodError: a value that the method refuses.
        """
        kind = find_method(method).settings
        authors = kind().to_dict()
        options: dict[str, Any] = dict(self.fixed)
        for name, value in drawn.items():
            was = options.get(name, authors[name])
            if isinstance(was, list | tuple):
                options[name] = [value] * len(was)
            else:
                options[name] = round(value) if isinstance(was, int) and not isinstance(was, bool) else value
        return kind.from_dict(options)


EPOCHS = Range(1.5, 2.75, step=0.25)
"""Passes over the retain set, of a training's twenty."""
RATE = Range(0.01, 0.4, log=True)
CONFIDENCE = Range(0.0, 1.0, step=0.1)
REPAIR = {"epochs": EPOCHS, "learning_rate": RATE, "confidence": CONFIDENCE}
_SETTLED = {"settle": True}
_CYCLE = {"settle": True, "schedule": "one-cycle"}

SPACES: dict[str, Space] = {
    "dilute": Space(
        _CYCLE,
        {"epochs": 2.25, "learning_rate": 0.075, "confidence": 0.8, "noise_share": 0.6},
        {**REPAIR, "noise_share": Range(0.05, 0.8, step=0.05)},
    ),
    "remix": Space(
        {},
        {"epochs": 1.2, "learning_rate": 0.085, "confidence": 0.8, "mixed_share": 0.55},
        {
            "epochs": Range(0.8, 1.2, step=0.2),
            "learning_rate": Range(0.02, 0.2, log=True),
            "confidence": CONFIDENCE,
            "mixed_share": Range(0.05, 0.7, step=0.05),
        },
    ),
    "oracle_matching": Space(
        {},
        {"mixed_share": 0.35, "epochs": 0.2, "learning_rate": 0.085, "hold": 0.3, "decay": 1e-3},
        {
            "mixed_share": Range(0.0, 0.6, step=0.05),
            "epochs": Range(0.2, 0.6, step=0.1),
            "learning_rate": Range(0.05, 0.4, log=True),
            "hold": Range(0.1, 1.0, log=True),
            "decay": Range(3e-4, 1e-2, log=True),
        },
    ),
    "seif": Space(
        {**_CYCLE, "class_weight_power": 0.0},
        {"epochs": 2.25, "learning_rate": 0.1, "confidence": 0.6, "noise": 0.06},
        {**REPAIR, "noise": Range(0.005, 0.2, log=True)},
    ),
    "kookmin": Space(
        {**_SETTLED, "multipliers": (0.5, 1.0, 1.0, 0.5, 0.1)},
        {"epochs": 1.75, "learning_rate": 0.174, "confidence": 0.5, "redrawn_share": 0.4, "kept_gradient": 0.6},
        {**REPAIR, "redrawn_share": Range(0.05, 0.7, step=0.05), "kept_gradient": Range(0.1, 1.0, step=0.1)},
    ),
    "random_mask": Space(
        _CYCLE,
        {"epochs": 2.25, "learning_rate": 3e-3, "confidence": 0.7, "masked_share": 0.4},
        {**REPAIR, "learning_rate": Range(1e-3, 3e-2, log=True), "masked_share": Range(0.05, 0.7, step=0.05)},
    ),
    "finetune": Space(
        {**_CYCLE, "weight_decay": 5e-4}, {"epochs": 2.5, "learning_rate": 0.35, "confidence": 0.8}, REPAIR
    ),
    "fanchuan": Space(
        {**_SETTLED, "retain_batch_size": 64, "rounds": 2},
        {"uniform_rate": 5e-3, "contrast_rate": 1e-3, "retain_rate": 0.1, "confidence": 0.5},
        {
            "uniform_rate": Range(1e-3, 0.1, log=True),
            "contrast_rate": Range(3e-4, 3e-2, log=True),
            "retain_rate": Range(0.01, 0.3, log=True),
            "confidence": CONFIDENCE,
        },
    ),
    "sebastian": Space(
        _CYCLE,
        {"epochs": 1.75, "learning_rate": 0.15, "confidence": 0.6, "pruned_share": 0.6},
        {**REPAIR, "epochs": Range(1.0, 2.0, step=0.25), "pruned_share": Range(0.06, 0.99, step=0.03)},
    ),
    "toshi": Space(
        {**_CYCLE, "procedure": "transpose"}, {"epochs": 2.25, "learning_rate": 0.1, "confidence": 0.6}, REPAIR
    ),
    "amnesiacs": Space(
        _CYCLE,
        {"distil_epochs": 0.5, "distil_rate": 0.3, "epochs": 1.25, "learning_rate": 0.12, "confidence": 0.6},
        {
            "distil_epochs": Range(0.25, 1.0, step=0.25),
            "distil_rate": Range(0.02, 1.0, log=True),
            "epochs": Range(0.75, 1.5, step=0.25),
            "learning_rate": RATE,
            "confidence": CONFIDENCE,
        },
    ),
    "sun": Space(
        {**_SETTLED, "first_rates": (0.1,), "noisy_rates": (0.1,), "last_rates": (0.02,)},
        {"first_rates": 0.1, "noisy_rates": 0.1, "last_rates": 0.02, "n_tensors": 6, "noise": 0.06, "confidence": 0.5},
        {
            "first_rates": RATE,
            "noisy_rates": RATE,
            "last_rates": Range(0.002, 0.1, log=True),
            "n_tensors": Range(3, 9, step=1),
            "noise": Range(0.005, 0.2, log=True),
            "confidence": CONFIDENCE,
        },
    ),
    "forget": Space(
        {**_SETTLED, "cycle_epochs": (0.75, 1.0)},
        {"n_layers": 2, "learning_rate": 0.02, "confidence": 0.5},
        {"n_layers": Range(1, 6, step=1), "learning_rate": Range(3e-3, 0.1, log=True), "confidence": CONFIDENCE},
    ),
    "gradient_ascent": Space(
        {"settle": True},
        {"epochs": 5, "learning_rate": 1e-3, "confidence": 0.0},
        {"epochs": Range(2, 20, step=1), "learning_rate": Range(1e-4, 3e-2, log=True), "confidence": CONFIDENCE},
    ),
    "neggrad_plus": Space(
        _CYCLE,
        {"epochs": 1.75, "learning_rate": 0.1, "alpha": 0.95, "confidence": 0.5},
        {**REPAIR, "epochs": Range(1.0, 2.25, step=0.25), "alpha": Range(0.8, 1.0, step=0.01)},
    ),
    "scrub": Space(
        {"settle": True, "epochs": 2},
        {"learning_rate": 0.02, "max_epochs": 1, "alpha": 0.5, "confidence": 0.3},
        {
            "learning_rate": Range(1e-3, 0.2, log=True),
            "max_epochs": Range(1, 2, step=1),
            "alpha": Range(0.001, 1.0, log=True),
            "confidence": CONFIDENCE,
        },
    ),
    "scrub_r": Space(
        {"settle": True, "epochs": 2},
        {"learning_rate": 0.02, "max_epochs": 1, "alpha": 0.5, "unseen_error": 0.2, "confidence": 0.3},
        {
            "learning_rate": Range(1e-3, 0.2, log=True),
            "max_epochs": Range(1, 2, step=1),
            "alpha": Range(0.001, 1.0, log=True),
            "unseen_error": Range(0.02, 0.5, step=0.02),
            "confidence": CONFIDENCE,
        },
    ),
    "random_label": Space(
        _CYCLE,
        {"epochs": 2.0, "learning_rate": 0.1, "confidence": 0.5},
        {**REPAIR, "epochs": Range(0.5, 2.5, step=0.25)},
    ),
    "salun": Space(
        _CYCLE,
        {"epochs": 2.0, "learning_rate": 0.1, "salient_share": 0.5, "confidence": 0.5},
        {**REPAIR, "epochs": Range(0.5, 2.5, step=0.25), "salient_share": Range(0.1, 0.9, step=0.1)},
    ),
    "l1_sparse": Space(
        {**_CYCLE, "weight_decay": 5e-4},
        {"epochs": 2.25, "learning_rate": 0.2, "alpha": 3e-4, "confidence": 0.5},
        {**REPAIR, "alpha": Range(1e-5, 1e-2, log=True)},
    ),
    "bad_teacher": Space(
        {"settle": True, "retain_share": 0.5},
        {"epochs": 1.5, "learning_rate": 0.02, "temperature": 1.0, "confidence": 0.3},
        {
            "epochs": Range(0.5, 2.0, step=0.25),
            "learning_rate": Range(1e-3, 0.2, log=True),
            "temperature": Range(0.5, 5.0, log=True),
            "confidence": CONFIDENCE,
        },
    ),
    "ssd": Space(
        {"settle": True, "batch_size": 64},
        {"alpha": 10.0, "dampening": 1.0, "confidence": 0.0},
        {
            "alpha": Range(0.5, 50.0, log=True),
            "dampening": Range(0.05, 2.0, log=True),
            "confidence": CONFIDENCE,
        },
    ),
    "cf_k": Space(
        _CYCLE,
        {"epochs": 2.5, "learning_rate": 0.2, "k": 2, "confidence": 0.5},
        {**REPAIR, "epochs": Range(1.5, 3.0, step=0.25), "k": Range(1, 3, step=1)},
    ),
    "eu_k": Space(
        _CYCLE,
        {"epochs": 2.5, "learning_rate": 0.1, "k": 2, "confidence": 0.5},
        {**REPAIR, "epochs": Range(1.5, 3.0, step=0.25), "k": Range(1, 3, step=1)},
    ),
}


def find_space(method: str) -> Space:
    """The space of a method.

    Raises:
        MethodError: unknown, or there is nothing to search.
    """
    find_method(method)
    if method not in SPACES:
        raise MethodError(f"{method} has nothing to tune. Expected one of {', '.join(sorted(SPACES))}.")
    return SPACES[method]
