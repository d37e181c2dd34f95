"""Descriptors and the test on them: against loops, under rotations, and by simulated retrains.

Simulations have fixed seeds. A rate is compared with the central 99.9 % of its binomial, so that one seed in a thousand
would fail a correct test.
"""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from audit.errors import BankError, OptionError
from audit.statistics import features as module
from audit.statistics.features import (
    DESCRIPTORS,
    LOWER_SHARE,
    SHRINKAGE,
    UPPER_SHARE,
    descriptors,
    direction,
    features_gate,
    features_of_runs,
)

N_VIEWS, N_IMAGES, N_FEATURES, N_RETAINED = 3, 5, 7, 30
LABELS, SUBJECTS = np.array([0, 0, 1, 2, 1]), np.array([4, 4, 4, 9, 4])
RETAINED_LABELS = np.arange(N_RETAINED) % 3


def drawn(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of a forget set and of retained images, which lie about the means of three classes."""
    rng = np.random.default_rng(seed)
    means = 3 * rng.normal(size=(3, N_FEATURES))
    forget = means[LABELS] + rng.normal(size=(N_VIEWS, N_IMAGES, N_FEATURES))
    return forget, means[RETAINED_LABELS] + rng.normal(size=(N_RETAINED, N_FEATURES))


def bank(rng: np.random.Generator, n: int, *, shift: float = 0.0, n_images: int = 4) -> np.ndarray:
    """Descriptors `(n, 6, n_images)` that depend on each other, as of one subject under n models."""
    mixed = rng.normal(size=(n, 6, 6 + n_images))
    common = mixed[:, :, :6] @ np.tril(np.ones((6, 6))) / 6
    found: np.ndarray = common.mean(axis=2)[:, :, None] + 0.3 * mixed[:, :, 6:]
    return found + shift * np.array([1.0, 0.5, -0.5, 1.0, 0.0, 0.2])[:, None]


def central(n: int, p: float) -> tuple[float, float]:
    low, high = stats.binom(n, p).interval(0.999)
    return low / n, high / n


# The naive twin


def dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a: list[float]) -> float:
    return math.sqrt(dot(a, a))


def cosine(a: list[float], b: list[float]) -> float:
    return dot(a, b) / norm(a) / norm(b)


def descriptors_twin(forget: np.ndarray, kept: np.ndarray) -> list[list[float]]:
    """The table of the module's text, image by image and view by view."""
    retained = kept.tolist()
    classes = sorted(set(RETAINED_LABELS.tolist()))
    members = {c: [v for v, y in zip(retained, RETAINED_LABELS.tolist(), strict=True) if y == c] for c in classes}
    means = {c: [statistics.fmean(column) for column in zip(*members[c], strict=True)] for c in classes}
    pairs = [cosine(a, b) for i, a in enumerate(retained) for j, b in enumerate(retained) if i != j]
    found: list[list[list[float]]] = [[[] for _ in range(N_IMAGES)] for _ in DESCRIPTORS]
    for view in forget.tolist():
        for i, f in enumerate(view):
            own = means[int(LABELS[i])]
            other = max((means[c] for c in classes if c != LABELS[i]), key=lambda mean: cosine(f, mean))
            apart = [a - b for a, b in zip(own, other, strict=True)]
            middle = [x - (a + b) / 2 for x, a, b in zip(f, own, other, strict=True)]
            away = norm([x - a for x, a in zip(f, own, strict=True)])
            mates = [cosine(f, g) for j, g in enumerate(view) if j != i and SUBJECTS[j] == SUBJECTS[i]]
            farther = [norm([x - a for x, a in zip(v, own, strict=True)]) > away for v in members[int(LABELS[i])]]
            values = (
                math.log(norm(f) / statistics.fmean(norm(v) for v in retained)),
                cosine(f, own),
                cosine(f, other),
                dot(middle, apart) / dot(apart, apart),
                statistics.fmean(mates) - statistics.fmean(pairs) if mates else 0.0,
                statistics.fmean(farther),
            )
            for k, value in enumerate(values):
                found[k][i].append(value)
    return [[statistics.median(views) for views in images] for images in found]


def gate_twin(candidate: np.ndarray, references: np.ndarray, originals: np.ndarray) -> tuple[float, float]:
    """p-values of both sides, by explicit sums."""
    out, known = references.mean(axis=2), originals.mean(axis=2)
    half = len(out) // 2
    choosing, judging = out[:half], out[half:]
    n, m = len(choosing), len(known)
    pooled = (np.cov(choosing.T) * (n - 1) + np.cov(known.T) * (m - 1)) / (n + m - 2)
    shrunk = np.zeros_like(pooled)
    for i in range(6):
        for j in range(6):
            shrunk[i, j] = pooled[i, j] * (1.0 if i == j else 1 - SHRINKAGE)
    w = np.linalg.inv(shrunk) @ (known.mean(axis=0) - choosing.mean(axis=0))
    scores = judging @ w
    t = (candidate.mean(axis=1) @ w - scores.mean()) / (scores.std(ddof=1) * math.sqrt(1 + 1 / len(scores)))
    return float(stats.t(len(scores) - 1).sf(t)), float(stats.t(len(scores) - 1).cdf(t))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_descriptors_are_those_of_the_loops(seed: int) -> None:
    forget, kept = drawn(seed)
    found = descriptors(forget, LABELS, SUBJECTS, kept, RETAINED_LABELS)
    np.testing.assert_allclose(found, descriptors_twin(forget, kept), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_test_is_that_of_the_sums(seed: int) -> None:
    rng = np.random.default_rng(seed)
    candidate, references, originals = bank(rng, 1)[0], bank(rng, 13), bank(rng, 8, shift=1.0)
    found = features_gate(candidate, references, originals)
    above, below = gate_twin(candidate, references, originals)
    assert (found.p_value, found.p_over) == (pytest.approx(above, rel=1e-9), pytest.approx(below, rel=1e-9))
    assert found.p_adjusted == pytest.approx(min(1.0, above / UPPER_SHARE, below / LOWER_SHARE))
    assert found.passed is (found.p_adjusted >= 0.05)
    assert (found.n_choosing, found.n_judging, found.n_originals, found.degrees_of_freedom) == (6, 7, 8, 6.0)


# What no basis changes


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), factor=st.floats(1e-3, 1e3))
def test_no_rotation_reflection_or_scale_of_a_models_features_changes_anything(seed: int, factor: float) -> None:
    forget, kept = drawn(seed % 1000)
    turn = stats.ortho_group.rvs(N_FEATURES, random_state=seed)
    found = descriptors(factor * forget @ turn, LABELS, SUBJECTS, factor * kept @ turn, RETAINED_LABELS)
    still = descriptors(forget, LABELS, SUBJECTS, kept, RETAINED_LABELS)
    np.testing.assert_allclose(found, still, rtol=1e-6, atol=1e-6)


def test_neither_the_order_of_features_nor_the_names_of_classes_and_subjects_matter() -> None:
    forget, kept = drawn(5)
    order = np.random.default_rng(0).permutation(N_FEATURES)
    names = np.array([7, 3, 11])
    found = descriptors(
        forget[:, :, order], names[LABELS], SUBJECTS.astype(str), kept[:, order], names[RETAINED_LABELS]
    )
    np.testing.assert_allclose(found, descriptors(forget, LABELS, SUBJECTS, kept, RETAINED_LABELS))


def test_an_image_at_its_classes_mean_is_there() -> None:
    _, kept = drawn(3)
    means = np.array([kept[c == RETAINED_LABELS].mean(axis=0) for c in range(3)])
    found = dict(
        zip(DESCRIPTORS, descriptors(means[LABELS][None], LABELS, SUBJECTS, kept, RETAINED_LABELS), strict=True)
    )
    for name, value in (("own", 1.0), ("place", 0.5), ("crowd", 1.0)):
        np.testing.assert_allclose(found[name], value, atol=1e-12)


# False positives and power


def test_retrained_models_are_rejected_at_alpha_whatever_was_learned() -> None:
    n = 2000
    for shift in (0.0, 2.0):
        rng = np.random.default_rng(7)
        judged = [features_gate(bank(rng, 1)[0], bank(rng, 16), bank(rng, 8, shift=shift)) for _ in range(n)]
        low, high = central(n, 0.05)
        assert low <= np.mean([not one.passed for one in judged]) <= high
        low, high = central(n, 0.05 * UPPER_SHARE)
        assert low <= np.mean([one.p_value < 0.05 * UPPER_SHARE for one in judged]) <= high


def test_a_model_that_forgot_nothing_is_rejected_and_one_pushed_beyond_too() -> None:
    rng = np.random.default_rng(1)
    judged = {
        shift: [features_gate(bank(rng, 1, shift=shift)[0], bank(rng, 24), bank(rng, 8, shift=3.0)) for _ in range(200)]
        for shift in (3.0, -4.0)
    }
    assert np.mean([not one.passed and one.t > 0 for one in judged[3.0]]) > 0.9
    assert np.mean([not one.passed and one.t < 0 for one in judged[-4.0]]) > 0.8


def test_a_candidate_that_chose_the_direction_would_be_rejected_too_often() -> None:
    """Why the original that runs begin from is not among the originals."""
    rng, n = np.random.default_rng(3), 400
    mine = []
    for _ in range(n):
        originals = bank(rng, 2)
        mine.append(features_gate(originals[0], bank(rng, 16), originals).p_value < 0.05 * UPPER_SHARE)
    assert np.mean(mine) > central(n, 0.05 * UPPER_SHARE)[1]


# Runs of a method


def test_runs_are_judged_one_by_one_and_together() -> None:
    rng = np.random.default_rng(2)
    references, originals = bank(rng, 24), bank(rng, 8, shift=2.0)
    runs = np.concatenate([bank(rng, 8, shift=2.0), bank(rng, 4)])
    found = features_of_runs(runs, references, originals, 0, nothing_done=originals[0])
    judged = [features_gate(run, references, originals) for run in runs]
    assert found.n_told_apart == sum(not one.passed for one in judged) > 4
    assert found.n_too_like_in == sum(one.p_value < 0.05 * UPPER_SHARE for one in judged)
    assert found.share.low < found.share.value == found.n_told_apart / 12 < found.share.high
    assert found.detection_p < 0.05
    assert found.shift > 1.0
    assert found.nothing_done is not None
    assert found.nothing_done > found.shift
    assert (found.n_runs, found.n_judging, found.n_choosing, found.n_originals) == (12, 12, 12, 8)
    again = features_of_runs(bank(np.random.default_rng(9), 24), references, originals, 0)
    assert (again.nothing_done, again.n_told_apart < 6, again.detection_p > 0.01) == (None, True, True)


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.zeros((2, 5, 3))}, "of as many features"),
        ({"features": np.full((3, 5, 7), np.nan)}, "finite features"),
        ({"labels": LABELS[:4]}, "labels and subjects of 5 images"),
        ({"labels": np.array([0, 0, 1, 2, 8])}, "every class of the forget set"),
        ({"retained_labels": np.zeros(N_RETAINED, int)}, "two classes"),
        ({"retained": np.zeros((1, 7)), "retained_labels": np.zeros(1, int)}, "n_retained >= 2"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(change: dict[str, np.ndarray], message: str) -> None:
    forget, kept = drawn(0)
    given = {
        "features": forget, "labels": LABELS, "subjects": SUBJECTS, "retained": kept,
        "retained_labels": RETAINED_LABELS,
    }  # fmt: skip
    with pytest.raises(BankError, match=message):
        descriptors(**{**given, **change})


def test_banks_that_cannot_judge_are_refused() -> None:
    rng = np.random.default_rng(0)
    candidate, references, originals = bank(rng, 1)[0], bank(rng, 8), bank(rng, 4)
    with pytest.raises(BankError, match="n_models >= 4"):
        features_gate(candidate, references[:3], originals)
    with pytest.raises(BankError, match=r"originals of shape \(n_models >= 2"):
        features_gate(candidate, references, originals[:1])
    with pytest.raises(BankError, match="candidate of shape"):
        features_gate(candidate[:, :2], references, originals)
    with pytest.raises(BankError, match="runs of shape"):
        features_of_runs(candidate, references, originals, 0)
    with pytest.raises(BankError, match="models of references that differ"):
        features_gate(candidate, np.repeat(references[:1], 8, axis=0), originals)
    with pytest.raises(OptionError, match="alpha"):
        features_gate(candidate, references, originals, alpha=1.0)


def test_a_descriptor_that_no_model_varies_in_has_no_weight() -> None:
    rng = np.random.default_rng(0)
    out, known = bank(rng, 8).mean(axis=2), bank(rng, 4, shift=1.0).mean(axis=2)
    out[:, 2] = known[:, 2] = 0.25
    w = direction(out, known)
    assert w[2] == 0.0
    assert np.isfinite(w).all()
    assert (known.mean(axis=0) - out.mean(axis=0)) @ w > 0


def test_the_module_tells_every_descriptor() -> None:
    told = [line.split("|")[1].strip() for line in (module.__doc__ or "").splitlines() if line.startswith("| ")]
    assert tuple(told[1:]) == DESCRIPTORS
