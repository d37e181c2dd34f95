"""Ratios with their spread, and the machine they come from."""

from __future__ import annotations

import os
import platform
import time

import numpy as np
import psutil
import torch

from unlearning.devices import describe_device


def ratio(numerators: list[float], denominators: list[float], seed: int = 0) -> tuple[float, float, float]:
    """Median ratio of pairs taken in the same round, with its interval (percentile bootstrap over rounds, 90 %)."""
    ratios = np.array(numerators) / np.array(denominators)
    medians = np.median(np.random.default_rng(seed).choice(ratios, (4000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.05, 0.95])
    return float(np.median(ratios)), float(low), float(high)


class Others:
    """What others take of the cores while something is measured; from the kernel's own count."""

    def __init__(self) -> None:
        self._began, self._busy = time.perf_counter(), _busy_seconds()

    def share(self, own_seconds: float) -> float:
        """Of all cores, since this was made; `own_seconds` of processor time were one's own."""
        seconds = (time.perf_counter() - self._began) * (os.cpu_count() or 1)
        return max(0.0, (_busy_seconds() - self._busy - own_seconds) / seconds)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


def machine() -> str:
    """Cores, processor and versions, in a line."""
    processor = describe_device(torch.device("cpu"))
    return f"{os.cpu_count()} cores of {processor}, Python {platform.python_version()}, torch {torch.__version__}"


def verdict(value: float, *, least: float | None = None, most: float | None = None) -> str:
    """The target and whether it is met."""
    if least is not None:
        return f"target >= {least:g}: {'met' if value >= least else 'MISSED'}"
    return f"target <= {most:g}: {'met' if value <= (most or 0.0) else 'MISSED'}"
