"""Speed and memory of the audit: the official ε beside the official procedure written out, and a whole evaluation.

    python benchmarks/audit.py [--quick] [--json FILE]

Prints, from one run on one machine:

* official ε at N = 512 and 300 examples against a plain transcription of the official procedure (every threshold tiled
  against every model), which is timed on a few of these examples and scaled, both checked to give the same ε;
* the peak of memory allocated by either, and this process's largest resident size before the plain one runs;
* a whole evaluation at N = 128 and 100 examples;
* how the cost of ε and of an evaluation grows with the number of examples.

Times are CPU seconds of this process over all its threads: they are what one core would need.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Run as a script, this file's own folder comes first on the path and its name would hide the package `audit`.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402

from audit import PRESETS, Evidence, epsilons, evaluate  # noqa: E402

DELTA = 1e-5


def plain_epsilon(u: np.ndarray, r: np.ndarray) -> float:
    """ε of one example by tiling all thresholds of the official grid against all models, as the official code does."""
    positive, negative = (r, u) if np.median(r) > np.median(u) else (u, r)
    range_p, range_n = np.ptp(positive), np.ptp(negative)
    smaller, larger = min(range_p, range_n), max(range_p, range_n)
    if smaller / larger < 0.01:
        return 50.0

    low, high = min(u.min(), r.min()), max(u.max(), r.max())
    grid = np.linspace(low, high, math.ceil((high - low) * 100))
    tiled = np.tile(grid[None, :], (len(u), 1))
    fnr, fpr = [(positive[:, None] < tiled).mean(axis=0)], [(negative[:, None] >= tiled).mean(axis=0)]

    inside, outside = (negative, positive) if range_p >= range_n else (positive, negative)
    first, last = inside.min() + smaller - 2.0, inside.max() + 2.0
    rights = np.linspace(first, last, math.ceil((last - first) * 100))
    lefts = np.concatenate([np.linspace(t - smaller - 2.0, t - smaller + 2.0, 400) for t in rights])
    right = np.tile(np.repeat(rights, 400)[None, :], (len(u), 1))
    left = np.tile(lefts[None, :], (len(u), 1))
    for rates, bank, is_inside in ((fnr, inside, False), (fpr, outside, True)):
        tiled = np.tile(bank[:, None], (1, left.shape[1]))
        called = np.logical_and(left <= tiled, tiled <= right)
        rates.append((called if is_inside else ~called).astype(np.float32).mean(axis=0, dtype=np.float64))

    fn, fp = np.concatenate(fnr), np.concatenate(fpr)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.log(1 - DELTA - fp) - np.log(fn), np.log(1 - DELTA - fn) - np.log(fp)
        values = np.clip(np.fmax(*terms), 0.0, None)
    values[(fn == 0) ^ (fp == 0)] = np.nan
    values[(fn == 0) & (fp == 0)] = np.inf
    return float(min(np.nanmax(values), 50.0))


def banks(n_models: int, n_examples: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unlearned and retrained margins of a slightly imperfect unlearner, examples dependent within a model."""
    rng = np.random.default_rng(seed)

    def bank(shift: float) -> np.ndarray:
        return 3 + shift + rng.normal(0, 1, (n_models, 1)) + rng.normal(0, 1, (n_models, n_examples))

    return bank(0.3), bank(0.0)


def seconds(task: Callable[[], Any]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    task()
    return time.process_time() - start


def peak_bytes(task: Callable[[], Any]) -> int:
    """Most memory allocated at once during one call."""
    tracemalloc.start()
    try:
        task()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def evidence(n_models: int, n_examples: int) -> Evidence:
    """Evidence of the size of one request."""
    u, r = banks(n_models, n_examples, seed=1)
    accuracies = np.clip(np.random.default_rng(2).normal(0.95, 0.01, (4, n_models)), 0, 1)
    return Evidence(
        retrained=r,
        unlearned=u,
        deployed=u[0],
        original=u[1] + 3,
        retain_accuracy_retrained=accuracies[0],
        retain_accuracy_unlearned=accuracies[1],
        retain_accuracy_deployed=0.95,
        retain_accuracy_original=0.97,
        test_accuracy_retrained=accuracies[2],
        test_accuracy_unlearned=accuracies[3],
        test_accuracy_deployed=0.95,
        test_accuracy_original=0.95,
        cost_share=0.1,
    )


def against_plain(n_models: int, n_examples: int, n_plain: int, *, repeats: int) -> dict[str, Any]:
    """Official ε of all examples, and of the first few by the plain procedure, scaled."""
    u, r = banks(n_models, n_examples, seed=0)
    ours = [seconds(lambda: epsilons(u, r)) for _ in range(repeats)]
    memory = peak_bytes(lambda: epsilons(u, r))
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    found = epsilons(u[:, :n_plain], r[:, :n_plain])
    plain, difference = [], 0.0
    for i in range(n_plain):
        start = time.process_time()
        value = plain_epsilon(u[:, i], r[:, i])
        plain.append(time.process_time() - start)
        difference = max(difference, abs(value - found[i]))
    ratios = np.array(plain)[:, None] * n_examples / np.array(ours)[None, :]
    return {
        "n_models": n_models,
        "n_examples": n_examples,
        "seconds": float(np.median(ours)),
        "seconds_an_example": float(np.median(ours)) / n_examples,
        "plain_examples_timed": n_plain,
        "plain_seconds_an_example": float(np.median(plain)),
        "plain_seconds_scaled": float(np.median(plain)) * n_examples,
        "times_faster": float(np.median(ratios)),
        "times_faster_range": [float(ratios.min()), float(ratios.max())],
        "largest_difference_of_epsilon": difference,
        "peak_bytes": memory,
        "resident_bytes": resident,
        "plain_peak_bytes": peak_bytes(lambda: plain_epsilon(u[:, 0], r[:, 0])),
    }


def growth(task_of: Callable[[int], Callable[[], Any]], sizes: tuple[int, ...], *, repeats: int) -> dict[str, Any]:
    """Seconds at each number of examples, and how well a straight line through them fits."""
    times = [min(seconds(task_of(size)) for _ in range(repeats)) for size in sizes]
    line = np.polyfit(sizes, times, 1)
    residual = np.asarray(times) - np.polyval(line, sizes)
    return {
        "n_examples": list(sizes),
        "seconds": times,
        "seconds_an_example": [t / size for t, size in zip(times, sizes, strict=True)],
        "r_squared_of_a_line": float(1 - residual.var() / np.var(times)),
    }


def measure(*, quick: bool) -> dict[str, Any]:
    """All figures."""
    policy = PRESETS["standard"]
    request = evidence(128, 100)
    evaluate(request, policy, rung=0, seed=0)  # tables and imports are made once a process
    whole = [seconds(lambda: evaluate(request, policy, rung=0, seed=0)) for _ in range(3 if quick else 7)]
    sizes = (25, 50, 100) if quick else (50, 100, 200, 400)
    u, r = banks(128, max(sizes), seed=3)
    by_size = {size: evidence(128, size) for size in sizes}
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "evaluation": {
            "n_models": 128,
            "n_examples": 100,
            "seconds": float(np.median(whole)),
            "seconds_range": [min(whole), max(whole)],
            "peak_bytes": peak_bytes(lambda: evaluate(request, policy, rung=0, seed=0)),
        },
        "growth_of_official_epsilon": growth(lambda size: lambda: epsilons(u[:, :size], r[:, :size]), sizes, repeats=3),
        "growth_of_evaluation": growth(
            lambda size: lambda: evaluate(by_size[size], policy, rung=0, seed=0), sizes, repeats=1
        ),
        "official_epsilon": against_plain(512, 60 if quick else 300, 1 if quick else 3, repeats=2 if quick else 5),
    }


def processor() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def show(figures: dict[str, Any]) -> None:
    """Print the figures for people."""
    machine, eps, whole = figures["machine"], figures["official_epsilon"], figures["evaluation"]
    print(f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}, NumPy {machine['numpy']}")
    print(f"official ε, N = {eps['n_models']}, {eps['n_examples']} examples: {eps['seconds']:.2f} s")
    print(
        f"  the same written out: {eps['plain_seconds_an_example']:.2f} s an example "
        f"({eps['plain_examples_timed']} timed, scaled to {eps['plain_seconds_scaled']:.0f} s)"
    )
    low, high = eps["times_faster_range"]
    print(f"  {eps['times_faster']:.0f} times faster ({low:.0f} to {high:.0f})")
    print(f"  largest difference of ε: {eps['largest_difference_of_epsilon']:.1e}")
    print(
        f"  memory: {eps['peak_bytes'] / 1e6:.0f} MB allocated, {eps['resident_bytes'] / 1e6:.0f} MB resident; "
        f"written out {eps['plain_peak_bytes'] / 1e6:.0f} MB"
    )
    low, high = whole["seconds_range"]
    print(
        f"whole evaluation, N = {whole['n_models']}, {whole['n_examples']} examples: {whole['seconds']:.2f} s "
        f"({low:.2f} to {high:.2f}), {whole['peak_bytes'] / 1e6:.0f} MB"
    )
    for name in ("growth_of_official_epsilon", "growth_of_evaluation"):
        grown = figures[name]
        steps = ", ".join(f"{n}: {t:.3f} s" for n, t in zip(grown["n_examples"], grown["seconds"], strict=True))
        print(f"{name.replace('_', ' ')}: {steps}; a line explains {grown['r_squared_of_a_line']:.1%}")


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer examples and repeats: half a minute")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")
    options = parser.parse_args()
    figures = measure(quick=options.quick)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
