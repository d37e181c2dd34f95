"""Relearning's figures: against loops, and on simulated curves. Rates are stated where they stand; seeds are fixed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from audit.errors import BankError
from audit.proof.statement import json_ready
from audit.qualification import judge_probe
from audit.statistics.gate import ALPHA, gate
from audit.statistics.relearning import areas, p_value, relearning
from tests.audit.test_qualification import BARS, evidence

N_STEPS, N_IMAGES = 4, 7
OWN, OTHERS = [0, 3, 5], [1, 2, 4, 6]


def bank(rng: np.random.Generator, n: int, *, start: float = 0.0, rise: float = 0.5) -> np.ndarray:
    """Curves `(n, N_STEPS + 1, N_IMAGES)` that start at `start` and rise by `rise` a step."""
    model = rng.normal(size=(n, 1, 1)) + 0.3 * rng.normal(size=(n, 1, N_IMAGES))
    steps = np.arange(N_STEPS + 1)[:, None]
    return start + model + rise * steps + 0.05 * rng.normal(size=(n, N_STEPS + 1, N_IMAGES))


def test_the_area_is_the_mean_margin_over_the_steps() -> None:
    curves = bank(np.random.default_rng(0), 3)
    found = areas(curves, OWN)
    assert found.shape == (3, 1, len(OTHERS))
    for model in range(3):
        for place, image in enumerate(OTHERS):
            expected = sum(curves[model, step, image] for step in range(1, N_STEPS + 1)) / N_STEPS
            assert found[model, 0, place] == pytest.approx(expected)


def test_the_p_value_is_the_gate_s() -> None:
    rng = np.random.default_rng(1)
    mine, theirs = areas(bank(rng, 1), OWN)[0], areas(bank(rng, 24), OWN)
    assert p_value(mine, theirs) == gate(mine, theirs).p_value


def test_figures_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(2)
    runs, references, originals = bank(rng, 10, rise=1.2), bank(rng, 24), bank(rng, 1, start=2.0)
    found = relearning(runs, references, originals, OWN, seed=0)
    told = sum(gate(run, areas(references, OWN)).p_value < ALPHA for run in areas(runs, OWN))
    assert (found.n_told_apart, found.n_runs, found.n_steps) == (told, 10, N_STEPS)
    assert found.told_apart.value == told / 10
    assert found.told_apart.low <= told / 10 <= found.told_apart.high
    assert found.runs.margin[2] == pytest.approx(runs[:, 2, OTHERS].mean())
    assert found.runs.margin_relearned[-1] == pytest.approx(runs[:, -1, OWN].mean())
    assert found.references.answered[0] == pytest.approx((references[:, 0, OTHERS] > 0).mean())
    assert found.originals is not None
    assert found.originals.answered_relearned[1] == pytest.approx((originals[:, 1, OWN] > 0).mean())
    json.dumps(json_ready(found), allow_nan=False)


def test_who_comes_back_as_retrained_models_do_is_told_apart_at_the_level_and_who_hides_always() -> None:
    """Over 40 banks of 24 references and 10 runs: of runs drawn as references from .02 to .09, of runs that start where
    references do and rise three times as fast at least .9."""
    rng = np.random.default_rng(3)
    alike, hiding = [], []
    for _ in range(40):
        references = bank(rng, 24)
        alike.append(relearning(bank(rng, 10), references, None, OWN, seed=0).n_told_apart / 10)
        hiding.append(relearning(bank(rng, 10, rise=2.5), references, None, OWN, seed=0).n_told_apart / 10)
    assert 0.02 <= np.mean(alike) <= 0.09
    assert np.mean(hiding) >= 0.9


def test_references_that_do_not_differ_tell_nothing() -> None:
    rng = np.random.default_rng(4)
    references = np.repeat(bank(rng, 1), 24, axis=0)
    found = relearning(bank(rng, 8), references, None, OWN, seed=0)
    assert np.isnan(found.told_apart.value)
    assert np.isnan(found.shift)
    assert found.n_told_apart == 0
    json.dumps(json_ready(found), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"runs": np.zeros((8, 2, 5, 7))}, "runs of shape"),
        ({"runs": np.zeros((8, 1, 7))}, "runs of shape"),
        ({"runs": np.zeros((8, 5, 6))}, "runs with the steps and images of the references"),
        ({"originals": np.zeros((1, 4, 7))}, "originals with the steps and images"),
        ({"references": np.full((8, 5, 7), np.inf)}, "finite margins in references"),
        ({"relearned": range(7)}, "some of the 7 images to be learned again and some not"),
        ({"relearned": []}, "some of the 7 images to be learned again and some not"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    rng = np.random.default_rng(5)
    values: dict[str, Any] = {
        "runs": bank(rng, 8), "references": bank(rng, 8), "originals": None, "relearned": OWN,
    }  # fmt: skip
    with pytest.raises(BankError, match=message):
        relearning(**{**values, **change}, seed=0)


def test_a_probe_has_it_where_it_was_measured_and_no_check_of_it() -> None:
    rng = np.random.default_rng(6)
    without = evidence(rng)
    measured = replace(without, curves=(bank(rng, 24, rise=3.0), bank(rng, 24), bank(rng, 1)), relearned=OWN)
    plain, probe = judge_probe(without, BARS, seed=1), judge_probe(measured, BARS, seed=1)
    assert plain.figures is not None
    assert probe.figures is not None
    assert plain.figures.relearning is None
    assert probe.figures.relearning is not None
    assert probe.figures.relearning.told_apart.value > 0.8
    assert probe.checks == plain.checks
    assert replace(probe.figures, relearning=None) == plain.figures
