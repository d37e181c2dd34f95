from __future__ import annotations

import xml.etree.ElementTree as ET

import numpy as np
import pytest

from audit.studies.block_bias import Curve, Point, bias, svg, table


def banks(shift: float, n_models: int = 64, n_examples: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Two banks whose models have a level of their own each, as models have; the second is shifted."""
    rng = np.random.default_rng(0)
    one, two = (rng.normal(size=(n_models, 1)) + rng.normal(size=(n_models, n_examples)) for _ in range(2))
    return one, two + shift


def test_references_without_fault_are_found_to_have_none() -> None:
    """Seeds are fixed; with others the test at .05 would err once in twenty."""
    found = bias(*banks(0.0), seed=0)
    assert found.ks_p > 0.05
    assert found.forgetting_ratio == pytest.approx(1.0, abs=0.35)
    assert found.turned_away <= 0.11


def test_a_fault_is_found() -> None:
    found, none = bias(*banks(2.0), seed=0), bias(*banks(0.0), seed=0)
    assert found.ks_p == 0.001
    assert found.forgetting_ratio < 0.5
    assert found.turned_away > none.turned_away
    assert found.ks_mean > none.ks_mean


@pytest.fixture(scope="module")
def curves() -> list[Curve]:
    good, bad = bias(*banks(0.0), seed=0), bias(*banks(2.0), seed=0)
    points = (
        Point("exact", 0.01, (good,)),
        Point("block", 0.05, (good, good)),
        Point("block", 0.2, (good, bad)),
        Point("stale", 0.05, (good, good)),
    )
    return [Curve("faces <drawn>", 100, 64, points)]


def test_several_subjects_are_corrected_for(curves: list[Curve]) -> None:
    _, block, large, _ = curves[0].points
    assert block.p_value == min(1.0, 2 * block.people[0].ks_p)
    assert large.p_value == 0.002


def test_the_table_has_a_line_a_point(curves: list[Curve]) -> None:
    lines = table(curves).splitlines()
    assert len(lines) == 2 + 4
    assert [line.split("|")[2].strip() for line in lines[2:]] == [
        "exact, drawn again", "5.0% left out", "20.0% left out", "5.0% erased since",
    ]  # fmt: skip
    assert {line.count("|") for line in lines} == {8}


def test_the_drawing_is_well_formed_and_shows_every_person(curves: list[Curve]) -> None:
    drawn = ET.fromstring(svg(curves))  # noqa: S314  (our own)
    assert len(drawn.findall(".//{*}circle")) == 2 * 6
    assert "faces <drawn>: share of the subjects left out" in "".join(drawn.itertext())
