"""Other tests of whether a model forgot, as functions of margins: how much a candidate looks like a model that did not.

Each gives one number for a candidate and a subject, the higher the more it looks like a model that learned from the
subject. What the papers say of one image is put together over the subject's images in the way that gave the test the
most power (`benchmarks/peers.py` says what it tried).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import special
from scipy.spatial.distance import cdist

from audit import forgetting_quality
from audit.statistics.epsilon import epsilons

OFFLINE_A, GAMMA = 0.3, 1.0
"""RMIA's constants: the authors' default for CIFAR-10, and the threshold of their code."""


def lira(candidate: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Offline LiRA (Carlini et al. 2022, section VI, arXiv 2112.03570): a normal distribution fitted to OUT, one-sided.

    With fewer than 64 references the authors estimate one variance for all examples: here one over all images and views
    of the subject.

    Args:
        candidate: margins `(n_views, n_images)`.
        references: OUT, `(n_models, n_views, n_images)`.

    Returns:
        z of every margin, `(n_views, n_images)`; the attack's score is Φ(z), its p-value Φ(−z).
    """
    variance = references.var(axis=0, ddof=1)
    if len(references) < 64:
        variance = np.full_like(variance, variance.mean())
    return np.asarray((candidate - references.mean(axis=0)) / np.sqrt(variance))


def lira_mean(candidate: np.ndarray, references: np.ndarray) -> float:
    """Mean of the attack's scores Φ(z)."""
    return float(special.ndtr(lira(candidate, references)).mean())


def lira_fisher(candidate: np.ndarray, references: np.ndarray) -> float:
    """Fisher's sum of −log p over images and views."""
    return float(-special.log_ndtr(-lira(candidate, references)).mean())


def lira_level(candidate: np.ndarray, references: np.ndarray) -> float:
    """1 − the smallest p-value of an image as it is, times the number of images (Bonferroni): above 1 − α rejects."""
    p_values = special.ndtr(-lira(candidate, references)[0])
    return 1 - min(1.0, float(p_values.min()) * len(p_values))


def rmia(
    candidate: np.ndarray, references: np.ndarray, population: np.ndarray, population_references: np.ndarray
) -> np.ndarray:
    """Offline RMIA (Zarifzadeh, Liu & Shokri 2024, arXiv 2312.03262): share of the population that an image outdoes.

    With p the probability of the true class, an image x and an image z of the population are compared by
    (p(x | candidate) / p(x)) / (p(z | candidate) / p(z)) > γ, where p(·) = ((1 + a) · mean over OUT + 1 − a) / 2.

    Args:
        candidate: margins `(n_views, n_images)`.
        references: OUT, `(n_models, n_views, n_images)`.
        population: the candidate's margins of images that no model learned from, `(n_views, n_population)`.
        population_references: the same of the references, `(n_models, n_views, n_population)`.

    Returns:
        Scores in [0, 1], `(n_views, n_images)`.
    """
    mine, theirs = _ratio(candidate, references), np.sort(_ratio(population, population_references), axis=-1)
    counts = [np.searchsorted(z, x / GAMMA, side="left") for x, z in zip(mine, theirs, strict=True)]
    return np.array(counts) / theirs.shape[-1]


def _ratio(margins: np.ndarray, references: np.ndarray) -> np.ndarray:
    usual = special.expit(references).mean(axis=0)  # the true class's probability is the margin's logistic function
    return np.asarray(special.expit(margins) / ((1 + OFFLINE_A) / 2 * usual + (1 - OFFLINE_A) / 2))


def relative_mmd(candidate: np.ndarray, retrained: np.ndarray, original: np.ndarray) -> float:
    """Three-sample test (Bounliphone et al. 2016, arXiv 1511.04581): is the candidate nearer to the original?

    MMD²(candidate, retrained) − MMD²(candidate, original) as a U-statistic over its standard error; above 1.645 rejects
    that the candidate is nearer to the retrained model. Gaussian kernel with the median distance as its width. Margins
    of one image under the three models belong together, so the standard error is that of the paired statistic. Ribero,
    Schrab & Gretton (2026, arXiv 2601.19755) ask the same question about unlearning, with other divergences.

    Args:
        candidate, retrained, original: observations of one model each, `(n, ...)`.
    """
    x, y, z = (
        np.asarray(model, dtype=np.float64).reshape(len(model), -1) for model in (candidate, retrained, original)
    )
    together = np.concatenate([x, y, z])
    distances = cdist(together, together, "sqeuclidean")
    width = np.median(distances[np.triu_indices(len(together), 1)]) or 1.0
    kernel, n = np.exp(-distances / width), len(x)
    xs, ys, zs = slice(0, n), slice(n, 2 * n), slice(2 * n, 3 * n)
    u = kernel[ys, ys] - kernel[xs, ys] - kernel[ys, xs] - kernel[zs, zs] + kernel[xs, zs] + kernel[zs, xs]
    np.fill_diagonal(u, 0.0)
    means = u.sum(axis=1) / (n - 1)
    error = 2 * means.std(ddof=1) / np.sqrt(n)
    return float(means.mean() / error) if error > 0 else 0.0


def competition(runs: np.ndarray, retrained: np.ndarray) -> tuple[float, float]:
    """The competition's −F and mean ε of N runs of a method against N retrained models, `(n_models, n_images)` each."""
    return -forgetting_quality(runs, retrained).value, float(np.nanmean(epsilons(runs, retrained)))


def thresholds(scores: Mapping[int, Sequence[float]], alpha: float) -> dict[int, float]:
    """For each block the score that a share α of retrained models of the *other* blocks exceeds.

    Args:
        scores: of retrained models, by block.
    """
    found = {}
    for block in scores:
        others = np.concatenate([np.asarray(values) for other, values in scores.items() if other != block])
        found[block] = float(np.quantile(others, 1 - alpha, method="higher"))
    return found
