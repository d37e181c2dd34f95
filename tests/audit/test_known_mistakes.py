"""Mistakes found in published evaluations of unlearning, each with data on which it would give another answer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from audit.statistics.distances import kl_divergences
from audit.statistics.epsilon import DELTA, epsilons
from audit.statistics.forgetting import forgetting_quality
from audit.statistics.margins import margins


def test_epsilon_is_the_larger_of_the_two_terms_and_not_the_smaller() -> None:
    # One of 20 retrained models lies among the unlearned, none of the unlearned below the threshold: FPR .05, FNR 0 is
    # dropped. Two unlearned ones below it: FPR .05, FNR .1 and log((1 - FNR) / FPR) = 2.89 beats log((1 - FPR) / FNR).
    retrained = np.r_[np.zeros(19), 10.0] + np.arange(20) * 1e-3
    unlearned = np.r_[np.full(2, -1.0), np.full(18, 9.0)] + np.arange(20) * 1e-3
    terms = [math.log((1 - DELTA - 0.05) / 0.1), math.log((1 - DELTA - 0.1) / 0.05)]
    (found,) = epsilons(unlearned[:, None], retrained[:, None], mode="exact")
    assert found >= max(terms) - 1e-9 > min(terms)


def test_a_perfectly_separated_example_is_the_worst_and_not_dropped() -> None:
    rng = np.random.default_rng(0)
    retrained, unlearned = rng.normal(size=(32, 2)), rng.normal(size=(32, 2))
    unlearned[:, 1] += 100.0
    eps = epsilons(unlearned, retrained)
    assert eps[1] == 50.0
    quality = forgetting_quality(unlearned, retrained)
    assert quality.n_undetermined == 0
    assert quality.points[1] == 0.0
    assert quality.value == pytest.approx(quality.points[0] / 2)  # a mean over both, not over what is left


def test_kl_is_of_the_unlearned_from_the_retrained_and_not_the_other_way() -> None:
    # KL(N(0, ½²) ‖ N(0, 1)) = ln 2 − 3/8 = .318; the other way round 3/2 − ln 2 = .807. The estimate of 2,000 has a
    # standard deviation of about .05.
    rng = np.random.default_rng(1)
    narrow, wide = rng.normal(0, 0.5, (2000, 1)), rng.normal(0, 1, (2000, 1))
    assert float(kl_divergences(narrow, wide)[0]) == pytest.approx(math.log(2) - 0.375, abs=0.15)
    assert float(kl_divergences(wide, narrow)[0]) == pytest.approx(1.5 - math.log(2), abs=0.25)


def test_models_that_are_always_right_still_differ_by_their_margins() -> None:
    # Correctness is 1 for every model and image on both sides; a statistic of it could tell nothing apart.
    rng = np.random.default_rng(2)
    labels = np.zeros(3, dtype=int)

    def bank(confidence: float) -> np.ndarray:
        logits = rng.normal(confidence, 0.3, (32, 3))[..., None] * np.array([1.0, -1.0])
        assert (logits.argmax(axis=2) == labels).all()
        return np.array([margins(model, labels) for model in logits])

    sure, surer = bank(2.0), bank(4.0)
    assert (epsilons(surer, sure) > 3.0).all()
