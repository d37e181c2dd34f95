"""Pages and figures of methods side by side, from synthetic pools."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from audit.errors import BankError
from audit.report import drawings
from audit.studies.comparison import DO_NOTHING, RETRAIN, Candidates, compare, method_figures, render_html, write
from audit.studies.experiments import Pool

NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)
N_MODELS = 32


@pytest.fixture(scope="module")
def candidates(draw: Any) -> Any:
    def candidates(seed: int, *, shift: float = 0.0, n_sets: int = 1, seconds: float | None = 1.0) -> Candidates:
        rng = np.random.default_rng(seed)
        margins = np.stack([draw(rng, N_MODELS, 6, shift=shift) for _ in range(n_sets)])
        values = np.clip(rng.normal(0.9, 0.01, margins.shape[:2]), 0, 1)
        spent = None if seconds is None else np.full(margins.shape[0] * N_MODELS, seconds)
        return Candidates(Pool(margins, values, values), spent)

    return candidates


@pytest.fixture(scope="module")
def comparison(candidates: Any) -> Any:
    methods = {
        "gentle": candidates(1, shift=1.5, seconds=0.2),
        "thorough <b>": candidates(2, shift=0.3, seconds=0.15),
        RETRAIN: candidates(3),
        DO_NOTHING: candidates(4, shift=3.0, seconds=None),
    }
    return compare(
        "reuse_n_n", methods, candidates(0), n_people=2, seed=0, n_experiments=6, provenance={"Recipe": "none"},
        created_at=NOW,
    )  # fmt: skip


def test_a_known_order_is_found(comparison: Any) -> None:
    assert [row.name for row in comparison.rows] == [RETRAIN, "thorough <b>", "gentle", DO_NOTHING]
    figures = {row.name: row for row in comparison.rows}
    assert figures["gentle"].cost_share == pytest.approx(0.2)
    assert figures[DO_NOTHING].cost_share is None
    assert figures[DO_NOTHING].rejected.value > 0.7
    assert figures[RETRAIN].rejected.value < 0.2
    assert 1.0 in figures[RETRAIN].ratio
    assert figures[RETRAIN].ks_mean < figures["gentle"].ks_mean < figures[DO_NOTHING].ks_mean
    assert figures[DO_NOTHING].detected_share == 1


def test_full_judges_set_by_set(candidates: Any) -> None:
    u, r = candidates(1, n_sets=3), candidates(0, n_sets=3)
    figures = method_figures("method", "full", u, r, seed=0, n_experiments=3)
    alone = [
        method_figures("method", "reuse_n_n", Candidates(_only(u.pool, i)), Candidates(_only(r.pool, i)), seed=0,
                       n_experiments=2)
        for i in range(3)
    ]  # fmt: skip
    assert figures.ks_mean == pytest.approx(np.mean([one.ks_mean for one in alone]))
    assert figures.rejected.value == pytest.approx(np.mean([one.rejected.value for one in alone]))
    assert figures.ratio.low <= figures.ratio.value <= figures.ratio.high
    assert figures.experiments.n_models == N_MODELS


def _only(pool: Pool, i: int) -> Pool:
    return Pool(pool.margins[i], pool.retain_accuracy[i], pool.test_accuracy[i])


def test_one_original_many_runs(candidates: Any) -> None:
    """The same margins N times over, as of an original judged like a method: far from all, and F is 0."""
    one = candidates(1, shift=2.0).pool
    pool = Pool(np.repeat(one.margins[:, :1], N_MODELS, axis=1), one.retain_accuracy, one.test_accuracy)
    figures = method_figures(DO_NOTHING, "reuse_n_1", Candidates(pool), candidates(0), seed=0, n_experiments=2)
    assert figures.ratio.value == figures.experiments.forgetting.value == 0
    assert figures.rejected.value in {0.0, 1.0}


def test_the_page_is_self_contained_and_escaped(comparison: Any, tmp_path: Any) -> None:
    page, data = write(comparison, tmp_path)
    text = page.read_text()
    assert text == render_html(comparison)
    assert "thorough &lt;b&gt;" in text
    assert "<b>" not in text
    assert "://" not in text
    assert "style=" not in text
    assert len(re.findall(r"<svg[^>]*role=\"img\"", text)) == 1
    for name in re.findall(r'aria-labelledby="([^"]*)"', text):
        assert all(f'id="{part}"' in text for part in name.split())
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    figures = json.loads(data.read_text())
    assert figures["created_at"] == "2026-01-31T12:00:00Z"
    assert figures["rows"][0]["experiments"]["score"]["value"] == comparison.rows[0].experiments.score.value


def test_every_figure_drawn_stands_in_the_table(comparison: Any) -> None:
    text = render_html(comparison)
    for row in comparison.rows:
        assert f"{row.experiments.score.value:.3f}<small>" in text


def test_a_naive_time_is_refused(comparison: Any) -> None:
    with pytest.raises(BankError, match="naive"):
        compare(
            "reuse_n_1", {}, Candidates(Pool(np.zeros((4, 1)), np.ones(4), np.ones(4))), n_people=1, seed=0,
            n_experiments=2, provenance={}, created_at=NOW.replace(tzinfo=None),
        )  # fmt: skip


def test_a_row_without_a_figure_stays_empty() -> None:
    svg = drawings.ranked_intervals(
        ["a", "b"],
        [(0.1, 0.05, 0.15), (np.nan, np.nan, np.nan)],
        ["unlearned", "unlearned"],
        band=None,
        axis="x",
        name="n",
    )
    assert svg.count("<circle") == 1
    assert "nan" not in re.sub(r"<desc.*?</desc>", "", svg)
