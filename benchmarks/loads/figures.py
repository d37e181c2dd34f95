"""Ratios with their spread, and the machine they come from."""

from __future__ import annotations

import os
import platform

import numpy as np
import torch

from unlearning.devices import describe_device


def ratio(numerators: list[float], denominators: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median ratio of pairs taken in the same round, with its interval (percentile bootstrap over rounds, 90 %)."""
    ratios = np.array(numerators) / np.array(denominators)
    medians = np.median(np.random.default_rng(seed).choice(ratios, (4000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.05, 0.95])
    return float(np.median(ratios)), float(low), float(high)


def machine() -> str:
    """Cores, processor and versions, in a line."""
    processor = describe_device(torch.device("cpu"))
    return f"{os.cpu_count()} cores of {processor}, Python {platform.python_version()}, torch {torch.__version__}"


def verdict(value: float, *, least: float | None = None, most: float | None = None) -> str:
    """The target and whether it is met."""
    if least is not None:
        return f"target >= {least:g}: {'met' if value >= least else 'MISSED'}"
    return f"target <= {most:g}: {'met' if value <= (most or 0.0) else 'MISSED'}"
