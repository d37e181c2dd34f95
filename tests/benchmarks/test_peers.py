"""Scores of the other tests beside naive twins, and rates that are known beforehand."""

from __future__ import annotations

import math
from itertools import product
from statistics import NormalDist

import numpy as np
import pytest

from benchmarks.gates import peers
from benchmarks.gates.models import Margins
from benchmarks.peers import Scores, figures


def probability(margin: float) -> float:
    return 1 / (1 + math.exp(-margin))


def test_rmia_is_the_share_of_the_population_that_an_image_outdoes() -> None:
    rng = np.random.default_rng(0)
    candidate, references = rng.normal(1, 2, (2, 3)), rng.normal(0, 2, (4, 2, 3))
    population, of_references = rng.normal(1, 2, (2, 17)), rng.normal(1, 2, (4, 2, 17))
    a, found = 0.3, peers.rmia(candidate, references, population, of_references)

    def ratio(mine: float, others: np.ndarray) -> float:
        usual = sum(probability(margin) for margin in others) / len(others)
        return probability(mine) / ((1 + a) / 2 * usual + (1 - a) / 2)

    for view, image in product(range(2), range(3)):
        x = ratio(candidate[view, image], references[:, view, image])
        outdone = sum(x / ratio(population[view, z], of_references[:, view, z]) > 1 for z in range(17))
        assert found[view, image] == pytest.approx(outdone / 17)


def test_lira_is_the_tail_of_the_normal_distribution_fitted_to_the_references() -> None:
    rng = np.random.default_rng(1)
    candidate, references = rng.normal(1, 2, (2, 3)), rng.normal(0, 2, (8, 2, 3))
    spread = math.sqrt(np.mean([references[:, v, i].var(ddof=1) for v, i in product(range(2), range(3))]))
    laws = {(v, i): NormalDist(references[:, v, i].mean(), spread) for v, i in product(range(2), range(3))}
    scores = np.array([[laws[v, i].cdf(candidate[v, i]) for i in range(3)] for v in range(2)])
    assert peers.lira_mean(candidate, references) == pytest.approx(scores.mean())
    assert peers.lira_fisher(candidate, references) == pytest.approx(-np.log(1 - scores).mean())
    assert peers.lira_level(candidate, references) == pytest.approx(1 - min(1, 3 * (1 - scores[0]).min()))
    many = rng.normal(0, [[[1.0, 5.0]]], (64, 1, 2))  # each image's own variance where there are enough references
    z = peers.lira(many.mean(axis=0) + 1, many)
    assert z == pytest.approx(1 / many.std(axis=0, ddof=1))


def test_relative_mmd_is_the_difference_of_two_distances_over_its_error() -> None:
    rng = np.random.default_rng(2)
    x, y, z = rng.normal(size=(3, 12))
    width = np.median([(a - b) ** 2 for i, a in enumerate([*x, *y, *z]) for b in [*x, *y, *z][:i]])

    def k(a: float, b: float) -> float:
        return math.exp(-((a - b) ** 2) / width)

    pairs = [(i, j) for i, j in product(range(12), repeat=2) if i != j]

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.mean([k(a[i], a[j]) + k(b[i], b[j]) - k(a[i], b[j]) - k(b[i], a[j]) for i, j in pairs]))

    found = peers.relative_mmd(x, y, z)
    assert np.sign(found) == np.sign(distance(x, y) - distance(x, z))
    assert peers.relative_mmd(x, z, y) == pytest.approx(-found)
    far, near = peers.relative_mmd(x, x + 3, x + 0.1), peers.relative_mmd(x, x + 0.1, x + 3)
    assert far > 1.645 > -1.645 > near


def test_relative_mmd_has_its_level_where_both_are_equally_far() -> None:
    """400 trials at 5 %: 20 expected, standard deviation 4.4; the seed is fixed."""
    rng, shifts = np.random.default_rng(3), np.array([[0.0], [1.0], [-1.0]])
    rejected = sum(peers.relative_mmd(*(rng.normal(size=(3, 100)) + shifts)) > 1.645 for _ in range(400))
    assert 6 <= rejected <= 36


def test_the_competition_tells_runs_that_forgot_nothing_from_retrained_models() -> None:
    rng = np.random.default_rng(4)
    retrained, alike, far = rng.normal(size=(3, 16, 5)) + np.array([0, 0, 8])[:, None, None]
    assert all(
        a < b for a, b in zip(peers.competition(alike, retrained), peers.competition(far, retrained), strict=True)
    )


def test_a_block_is_judged_by_the_other_blocks_scores() -> None:
    scores = {0: np.arange(100.0), 1: np.full(5, 1e6), 2: np.arange(100.0, 200.0)}
    found = peers.thresholds(scores, 0.05)
    assert found[0] == 199.0 or found[0] == 1e6
    assert found[1] == 190.0  # ten of the 200 others reach it, nine exceed it
    assert sum(value > found[1] for value in [*scores[0], *scores[2]]) == 9


def test_rates_of_known_scores_come_out() -> None:
    """Two subjects of one image; scores of retrained models are 0 to 19, of originals 100 and 5."""
    rng = np.random.default_rng(5)
    subjects = [
        Margins(name, block, rng.normal(size=(20, 1, 1)), rng.normal(size=(20, 1, 1)) + 5, {})
        for block, name in enumerate(("first", "second"))
    ]
    scores = Scores()
    for subject, value in zip(subjects, (100.0, 5.0), strict=True):
        scores.retrained[subject.subject] = list(np.arange(20.0))
        scores.originals[subject.subject] = [value] * 4
    found = figures("x", scores, subjects, n_references=8, level=None, n_trials=40)
    assert found["false_positive_rate"] == 0.0  # the 95th percentile of twenty is the highest
    assert found["power"][0] == 0.5
    assert figures("x", scores, subjects, n_references=8, level=9.5, n_trials=40)["false_positive_rate"] == 0.5
