"""The table over several comparisons: means, intervals, ranks, and three ways to write it down."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from audit.errors import BankError
from audit.statistics.intervals import Interval
from audit.studies.comparison import DO_NOTHING, RETRAIN, Candidates, compare
from audit.studies.experiments import Pool, Setup
from audit.studies.table import Cell, Study, _label_places, _overlap, drawing, markdown, mean_interval, write

N, IMAGES = 16, 6


def pool(rng: np.random.Generator, shift: float, accuracy: float = 1.0) -> Pool:
    return Pool(rng.normal(shift, 1.0, (N, IMAGES)), np.full(N, accuracy), np.full(N, 0.9 * accuracy))


def cell(setup: Setup, name: str, seed: int, *, without: str | None = None) -> Cell:
    rng = np.random.default_rng(seed)
    methods = {
        "good": Candidates(pool(rng, 0.0), np.full(N, 1.0)),
        "poor": Candidates(pool(rng, 3.0, 0.8), np.full(N, 3.0)),
        RETRAIN: Candidates(pool(rng, 0.0), np.full(N, 10.0)),
        DO_NOTHING: Candidates(pool(rng, 4.0)),
    }
    failed = {} if without is None else {without: f"{without} diverged"}
    methods = {method: value for method, value in methods.items() if method != without}
    comparison = compare(
        setup, methods, Candidates(pool(rng, 0.0), np.full(N, 10.0)), n_people=1, seed=0, n_experiments=4,
        provenance={}, created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    return Cell(name, comparison, failed)


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(
        (
            cell("reuse_n_1", "one", 1), cell("reuse_n_1", "other", 2, without="poor"),
            cell("reuse_n_n", "one", 3),
        )
    )  # fmt: skip


def test_rows_are_means_over_cells_and_ranked_without_the_anchors(study: Study) -> None:
    rows = study.rows("reuse_n_1")
    assert [(row.name, row.rank) for row in rows] == [("good", 1), ("poor", 2), (RETRAIN, 0), (DO_NOTHING, 0)]
    cells = study.cells_of("reuse_n_1")
    found = [row for c in cells for row in c.comparison.rows if row.name == "good"]
    assert rows[0].score == pytest.approx(np.mean([row.experiments.score.value for row in found]))
    assert rows[0].detected_share == pytest.approx(np.mean([row.detected_share for row in found]))
    assert (rows[0].n_cells, rows[1].n_cells) == (2, 1)
    assert rows[0].cost_share == pytest.approx(0.1)
    assert rows[3].cost_share is None
    assert study.setups == ("reuse_n_1", "reuse_n_n")


def test_interval_of_a_mean_has_the_naive_variance() -> None:
    # One ratio keeps its width on the logarithm's scale; four equal ones halve it.
    one = Interval(0.5, 0.4, 0.625)
    half = (mean_interval([one]).high - mean_interval([one]).low) / 2
    assert half == pytest.approx(0.5 * math.log(1.25), rel=1e-3)
    four = mean_interval([one] * 4)
    assert four.value == 0.5
    assert (four.high - four.low) / 2 == pytest.approx(half / 2)
    assert math.isnan(mean_interval([one, Interval(math.nan, math.nan, math.nan)]).value)
    assert mean_interval([Interval(0.0, 0.0, 0.0)] * 2) == Interval(0.0, 0.0, 0.0)


def test_coverage_of_the_mean_s_interval() -> None:
    # 400 means of four log-normal ratios of known spread; 95 % nominal, binomial sd 1.1 %: alarm below .91 or above .98
    rng, inside, sd = np.random.default_rng(0), 0, 0.15
    for _ in range(400):
        values = 0.7 * np.exp(rng.normal(0, sd, 4))
        ratios = [Interval(v, v * math.exp(-1.96 * sd), v * math.exp(1.96 * sd)) for v in values]
        mean = mean_interval(ratios)
        inside += mean.low <= 0.7 * math.exp(sd**2 / 2) <= mean.high
    assert 0.91 <= inside / 400 <= 0.98


def test_markdown_says_what_was_reached_and_what_failed(study: Study) -> None:
    text = markdown(study)
    assert "### Reuse-N-1" in text
    assert "### Reuse-N-N" in text
    assert f"one {N}, other {N}" in text
    assert "`poor` (1 of 2 forget sets)" in text
    assert "* `poor` gave no model for other: poor diverged" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            lines = block.splitlines()
            assert len({line.count("|") for line in lines}) == 1


def test_the_drawing_is_a_picture_of_every_method(study: Study) -> None:
    root = ElementTree.fromstring(drawing(study, "reuse_n_1"))  # noqa: S314 (our own)
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert {"good", "poor", "retraining", "doing nothing", "score"} <= words
    assert len(list(root.iter("{http://www.w3.org/2000/svg}circle"))) == 2


def test_files(study: Study, tmp_path: Path) -> None:
    names = {path.name for path in write(study, tmp_path)}
    assert names == {
        "comparison.md", "comparison.json", "comparison-reuse-n-1.svg", "comparison-reuse-n-n.svg",
    }  # fmt: skip
    kept = json.loads((tmp_path / "comparison.json").read_text())
    assert kept["rows"]["reuse_n_1"][0]["name"] == "good"
    assert len(kept["cells"]) == 3
    assert kept["cells"][1]["failed"] == {"poor": "poor diverged"}


def test_no_cells() -> None:
    with pytest.raises(BankError, match="at least one cell"):
        Study(())


def test_names_in_a_crowd_cover_neither_each_other_nor_a_point() -> None:
    points = [(300.0 + 9 * (i % 3), 200.0 + 8 * (i // 3)) for i in range(9)]
    places = _label_places(points, ["some_method"] * 9, 400.0)
    boxes = [(x, y, x + 7.0 * len("some_method"), y - 10) for x, y in places]
    dots = [(x - 6, y + 6, x + 6, y - 6) for x, y in points]
    for i, box in enumerate(boxes):
        assert not any(_overlap(box, other) for other in boxes[:i] + dots)
