"""Methods compared over several forget sets and setups: one table as Markdown, JSON and a drawing.

A *cell* is one comparison: a forget set under one setup. A row of the table is a method's mean over the cells of one
setup, each cell with the same weight. F / F_null of a mean has an interval from those of its cells,

    Var(mean of ratios) = Σ Var(ratio) / n²,

with each cell's standard deviation taken from its interval, which is symmetric on the logarithm. Forget sets of a data
set share originals, so their cells are not quite independent. Methods are ranked by score, anchors are not ranked.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from audit.errors import BankError
from audit.proof.statement import json_ready
from audit.report.drawings import WIDTH, Scale
from audit.report.wording import number
from audit.statistics.intervals import CONFIDENCE, Interval
from audit.studies.comparison import DO_NOTHING, RETRAIN, SETUP_WORDS, Comparison, MethodFigures, title
from audit.studies.experiments import Setup

COST_LIMIT = 0.2
"""The competition's limit of cost, as a share of retraining."""


@dataclass(frozen=True)
class Cell:
    """One forget set under one setup.

    Attributes:
        forget_set: its name in the table; never a user id.
        comparison: methods and anchors; its `n_models` is the number trained so far.
        failed: methods that gave no model in this cell, with the reason.
    """

    forget_set: str
    comparison: Comparison
    failed: Mapping[str, str]


@dataclass(frozen=True)
class StudyRow:
    """A method's or anchor's means over the cells of one setup; `rank` is 0 for an anchor."""

    name: str
    rank: int
    n_cells: int
    score: float
    forgetting: float
    ratio: Interval
    detected_share: float
    rejected: float
    retain_ratio: float
    test_ratio: float
    forget_accuracy: float
    cost_share: float | None

    @property
    def is_anchor(self) -> bool:
        """Whether this is an anchor."""
        return self.rank == 0


@dataclass(frozen=True)
class Study:
    """All cells, and the rows of each setup."""

    cells: tuple[Cell, ...]

    def __post_init__(self) -> None:
        if not self.cells:
            raise BankError("Expected at least one cell of a study.")

    @property
    def setups(self) -> tuple[Setup, ...]:
        """Setups in the order of the cells."""
        return tuple(dict.fromkeys(cell.comparison.setup for cell in self.cells))

    def cells_of(self, setup: Setup) -> list[Cell]:
        """The cells of one setup."""
        return [cell for cell in self.cells if cell.comparison.setup == setup]

    def rows(self, setup: Setup) -> list[StudyRow]:
        """Methods by decreasing score, then the anchors."""
        found: dict[str, list[MethodFigures]] = {}
        for cell in self.cells_of(setup):
            for row in cell.comparison.rows:
                found.setdefault(row.name, []).append(row)
        means = [_mean(name, rows) for name, rows in found.items()]
        methods = sorted((row for row in means if row.name not in (RETRAIN, DO_NOTHING)), key=lambda row: -row.score)
        ranked = [StudyRow(**{**vars(row), "rank": rank}) for rank, row in enumerate(methods, 1)]
        return ranked + [row for name in (RETRAIN, DO_NOTHING) for row in means if row.name == name]

    def to_dict(self) -> dict[str, Any]:
        """Rows by setup, and every cell with all its figures, as plain JSON values."""
        ready: dict[str, Any] = json_ready(
            {"rows": {setup: self.rows(setup) for setup in self.setups}, "cells": list(self.cells)}
        )
        return ready


def markdown(study: Study) -> str:
    """Markdown of the table of every setup, and of F / F_null by forget set."""
    parts = []
    for setup in study.setups:
        cells = study.cells_of(setup)
        parts += [
            f"### {SETUP_WORDS[setup].partition(':')[0]}",
            "",
            "Models a bank: "
            + ", ".join(f"{cell.forget_set} {cell.comparison.n_models}" for cell in cells)
            + f". F is of {' or '.join(sorted({str(_side(cell)) for cell in cells}))} models a side.",
            "",
            "| rank | method | score | F | F / F_null (95 %) | images KS rejects | single models rejected "
            "| RA ratio | TA ratio | forget accuracy | cost |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *(_line(row, n_cells=len(cells)) for row in study.rows(setup)),
            "",
            *_by_forget_set(study, setup),
            "",
            *(
                f"* `{name}` gave no model for {cell.forget_set}: {reason}"
                for cell in cells
                for name, reason in cell.failed.items()
            ),
        ]
    return "\n".join(parts).rstrip() + "\n"


def drawing(study: Study, setup: Setup) -> str:
    """Score against cost with one point for each method, as a standalone SVG."""
    rows = study.rows(setup)
    methods = [row for row in rows if not row.is_anchor and row.cost_share is not None]
    anchors = {row.name: row.score for row in rows if row.is_anchor}
    highest = max([row.score for row in rows] + [0.01])
    dearest = max([row.cost_share or 0.0 for row in methods] + [COST_LIMIT])
    height, left, bottom = 460, 64.0, 400.0
    x, y = Scale(0.0, dearest * 1.12, left, WIDTH - 90.0), Scale(0.0, highest * 1.08, bottom, 24.0)
    parts = [_line_of(x(t), 24, x(t), bottom, "grid") + _words(x(t), bottom + 18, f"{t:.0%}") for t in x.ticks()]
    parts += [
        _line_of(left, y(t), x.stop, y(t), "grid") + _words(left - 8, y(t) + 4, f"{t:.2f}", "end") for t in y.ticks(6)
    ]
    parts.append(_line_of(x(COST_LIMIT), 24, x(COST_LIMIT), bottom, "limit"))
    parts.append(_words(x(COST_LIMIT) + 4, 34, "the competition's limit", "start"))
    for name, score in anchors.items():
        parts.append(_line_of(left, y(score), x.stop, y(score), f"anchor {name}"))
        parts.append(_words(x.stop + 4, y(score) + 4, title(name), "start"))
    points = [(x(row.cost_share or 0.0), y(row.score)) for row in methods]
    places = _label_places(points, [row.name for row in methods], bottom)
    for row, (at_x, at_y), (start, baseline) in zip(methods, points, places, strict=True):
        end = start if start > at_x else start + _LETTER * len(row.name)
        if math.hypot(end - at_x, baseline - 4 - at_y) > 16:
            parts.append(_line_of(at_x, at_y, end, baseline - 4, "leader"))
        parts.append(f'<circle cx="{at_x:.1f}" cy="{at_y:.1f}" r="5"/>' + _words(start, baseline, row.name, "start"))
    parts.append(_words((left + x.stop) / 2, height - 14, "cost, as a share of retraining's processor time"))
    told = "; ".join(f"{row.name} {row.score:.3f} at {row.cost_share:.0%}" for row in methods)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" '
        f'height="{height}"><title>Score against cost</title><desc>{escape(told)}</desc><style>{_STYLE}</style>'
        f'{"".join(parts)}<text transform="translate(16 {(24 + bottom) / 2:.0f}) rotate(-90)" '
        f'text-anchor="middle">score</text></svg>\n'
    )


def write(study: Study, folder: Path) -> list[Path]:
    """Write `comparison.md`, `comparison.json` and one drawing for each setup, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "comparison.md": markdown(study),
        "comparison.json": json.dumps(study.to_dict(), indent=1, ensure_ascii=False) + "\n",
        **{f"comparison-{setup.replace('_', '-')}.svg": drawing(study, setup) for setup in study.setups},
    }
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in files]


_LETTER = 7.0  # width of a letter of the drawing's font, roughly
_STYLE = (
    ".leader{stroke:#8888}svg{font:12px system-ui,sans-serif;color:#1f2937}text{fill:currentColor}"
    ".grid{stroke:#8884}.limit{stroke:#b45309;stroke-dasharray:4 4}.anchor{stroke:#2563eb;stroke-width:2}"
    ".do_nothing{stroke:#6b7280}circle{fill:#ea580c}@media(prefers-color-scheme:dark){svg{color:#e5e7eb}}"
)


def _mean(name: str, rows: Sequence[MethodFigures]) -> StudyRow:
    costs = [row.cost_share for row in rows if row.cost_share is not None]
    return StudyRow(
        name=name,
        rank=0,
        n_cells=len(rows),
        score=float(np.mean([row.experiments.score.value for row in rows])),
        forgetting=float(np.mean([row.experiments.forgetting.value for row in rows])),
        ratio=mean_interval([row.ratio for row in rows]),
        detected_share=float(np.mean([row.detected_share for row in rows])),
        rejected=float(np.mean([row.rejected.value for row in rows])),
        retain_ratio=float(np.mean([row.experiments.retain_ratio.value for row in rows])),
        test_ratio=float(np.mean([row.experiments.test_ratio.value for row in rows])),
        forget_accuracy=float(np.mean([row.forget_accuracy for row in rows])),
        cost_share=float(np.mean(costs)) if costs else None,
    )


def mean_interval(ratios: Sequence[Interval]) -> Interval:
    """Mean of independent ratios whose intervals are symmetric on the logarithm; see the module's docstring."""
    values = np.array([ratio.value for ratio in ratios])
    if np.isnan(values).any():
        return Interval(math.nan, math.nan, math.nan)
    z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))
    spreads = [r.value * math.log(r.high / r.low) / (2 * z) if r.low > 0 else 0.0 for r in ratios]
    mean, half = float(values.mean()), z * math.sqrt(sum(s * s for s in spreads)) / len(ratios)
    return Interval(mean, max(0.0, mean - half), mean + half)


def _label_places(
    points: Sequence[tuple[float, float]], names: Sequence[str], bottom: float
) -> list[tuple[float, float]]:
    """Left ends and baselines of the points' names: the nearest free place of each, the right side preferred."""
    boxes = [(px - 6, py + 6, px + 6, py - 6) for px, py in points]  # left, bottom, right, top
    places = []
    for (px, py), name in zip(points, names, strict=True):
        width = _LETTER * len(name)
        shifts = [(out, right, down) for out in (0, 14, 28) for right in (True, False) for down in range(-48, 49, 12)]
        shifts.sort(key=lambda shift: (abs(shift[2]) + shift[0], not shift[1]))
        tried = [(px + 9 + out if right else px - 9 - out - width, py + 4 + down) for out, right, down in shifts]
        sound = [(bx, by, bx + width, by - 10) for bx, by in tried if 12 < by < bottom and bx + width < WIDTH]
        free = [box for box in sound if not any(_overlap(box, other) for other in boxes)]
        start, baseline, end, top = (free or sound or [(px + 9, py + 4, px + 9 + width, py - 6)])[0]
        boxes.append((start, baseline, end, top))
        places.append((start, baseline))
    return places


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[2] and one[2] > other[0] and one[3] < other[1] and one[1] > other[3]


def _side(cell: Cell) -> int:
    return cell.comparison.rows[0].experiments.n_models


def _line(row: StudyRow, *, n_cells: int) -> str:
    ratio = f"{row.ratio.value:.2f} ({row.ratio.low:.2f} to {row.ratio.high:.2f})"
    name = title(row.name) if row.is_anchor else f"`{row.name}`"
    lacking = "" if row.n_cells == n_cells else f" ({row.n_cells} of {n_cells} forget sets)"
    cells = [
        "" if row.is_anchor else str(row.rank), name + lacking, number(row.score), number(row.forgetting), ratio,
        f"{row.detected_share:.0%}", f"{row.rejected:.0%}", number(row.retain_ratio), number(row.test_ratio),
        f"{row.forget_accuracy:.1%}", "–" if row.cost_share is None else f"{row.cost_share:.0%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _by_forget_set(study: Study, setup: Setup) -> list[str]:
    cells = study.cells_of(setup)
    ratios = [{row.name: row.ratio for row in cell.comparison.rows} for cell in cells]
    lines = [
        f"F / F_null by forget set | {' | '.join(cell.forget_set for cell in cells)}".join(("| ", " |")),
        "|---" * (len(cells) + 1) + "|",
    ]
    for row in study.rows(setup):
        found = [ratio.get(row.name) for ratio in ratios]
        texts = ["–" if r is None else f"{r.value:.2f} ({r.low:.2f} to {r.high:.2f})" for r in found]
        lines.append(f"| {title(row.name) if row.is_anchor else f'`{row.name}`'} | {' | '.join(texts)} |")
    return lines


def _line_of(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _words(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
