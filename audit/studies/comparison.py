"""Comparison of methods over E experiments, with two anchors, as a page and as JSON.

The anchors give the scale. *Retraining*, evaluated like a method, is perfect forgetting: its score is the ceiling, and
it is far below 1 because ε is a maximum over many rules. *Doing nothing* is the original models, evaluated like a
method.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from audit.errors import BankError
from audit.proof.statement import json_ready
from audit.report import drawings
from audit.report.page import template
from audit.report.wording import number
from audit.statistics.distances import detect
from audit.statistics.exchangeability import exchangeability
from audit.statistics.forgetting import forgetting_ratio
from audit.statistics.intervals import CONFIDENCE, Interval, clopper_pearson, percentiles, resampled_means
from audit.statistics.margins import Array
from audit.studies.experiments import Experiments, Pool, Setup, run_experiments

RETRAIN, DO_NOTHING = "retrain", "do_nothing"
ANCHORS = {RETRAIN: ("retraining", "perfect forgetting"), DO_NOTHING: ("doing nothing", "the originals")}
"""Title and meaning of each anchor."""
ALPHA = 0.05

SETUP_WORDS: dict[Setup, str] = {
    "full": "Full: every experiment has originals, unlearned and retrained models of its own",
    "reuse_n_n": "Reuse-N-N: each unlearned model comes from an original of its own; experiments draw from one pool",
    "reuse_n_1": "Reuse-N-1: all unlearned models come from one original; experiments draw from one pool",
}


@dataclass(frozen=True)
class Candidates:
    """A method's models, and the seconds of each run `(n_runs,)` (None for an anchor without runs)."""

    pool: Pool
    seconds: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class MethodFigures:
    """Figures of one method or anchor."""

    name: str
    experiments: Experiments
    ratio: Interval
    """F / F_null; interval over models, for `full` over experiments."""
    ks_mean: float
    """Mean KS distance over the images, in [0, 1]."""
    detected_share: float
    """Share of the images that the KS test rejects at a false discovery rate of 5 %."""
    detection_p: float
    """p-value of the whole forget set by permuting models; for several sets their median."""
    rejected: Interval
    """Share of single models that the exchangeability test rejects at 5 %; exact binomial interval."""
    forget_accuracy: float
    """Accuracy on the forget set, in [0, 1]."""
    cost_share: float | None
    """Median seconds of a run over the median seconds of a retraining."""

    @property
    def is_anchor(self) -> bool:
        """Whether this is an anchor and not a method."""
        return self.name in ANCHORS


@dataclass(frozen=True)
class Comparison:
    """Methods and anchors, best score first.

    Attributes:
        n_models: models of a kind in a bank; `rows[0].experiments.n_models` of them a side in an experiment.
        n_examples, n_people: images and subjects of the forget set.
        provenance: rows of that table, name to value; never a user id.
        created_at: aware datetime.
    """

    setup: Setup
    n_models: int
    n_experiments: int
    n_examples: int
    n_people: int
    rows: tuple[MethodFigures, ...]
    retrained_forget_accuracy: float
    provenance: Mapping[str, str]
    created_at: datetime

    def to_dict(self) -> dict[str, Any]:
        """All figures as plain JSON values."""
        ready: dict[str, Any] = json_ready(self)
        return ready


def method_figures(
    name: str,
    setup: Setup,
    candidates: Candidates,
    retrained: Candidates,
    *,
    seed: int,
    n_experiments: int,
    n_models: int | None = None,
) -> MethodFigures:
    """Every figure of one method's pool against the pool of retrained models.

    Args:
        name: of the method, `RETRAIN` or `DO_NOTHING`.
        setup: how the pools were drawn, see `audit.studies.experiments`.
        candidates: the method's models.
        retrained: models trained without the forget set, none of them among the candidates.
        seed: of draws and permutations.
        n_experiments: as in `run_experiments`.
        n_models: models a side in an experiment, as there.

    Raises:
        BankError: pools that do not fit the setup or each other.
    """
    u, r = candidates.pool, retrained.pool
    experiments = run_experiments(setup, u, r, seed=seed, n_experiments=n_experiments, n_models=n_models)
    pairs = list(zip(u.margins, r.margins if setup == "full" else [r.margins[0]] * len(u.margins), strict=True))
    found = [detect(a, b, seed=seed) for a, b in pairs]
    cost = None
    if candidates.seconds is not None and retrained.seconds is not None:
        cost = float(np.median(candidates.seconds) / np.median(retrained.seconds))
    return MethodFigures(
        name=name,
        experiments=experiments,
        ratio=_ratio(pairs, seed),
        ks_mean=float(np.mean([d.ks_mean for d in found])),
        detected_share=float(np.mean([d.n_rejected / u.margins.shape[2] for d in found])),
        detection_p=float(np.median([d.ks_combined_p for d in found])),
        rejected=_rejected(pairs),
        forget_accuracy=float((u.margins > 0).mean()),
        cost_share=cost,
    )


def compare(
    setup: Setup,
    methods: Mapping[str, Candidates],
    retrained: Candidates,
    *,
    n_people: int,
    seed: int,
    n_experiments: int,
    provenance: Mapping[str, str],
    created_at: datetime,
    on_method: Callable[[int, int], None] = lambda done, wanted: None,
) -> Comparison:
    """Compare all methods and anchors with the same retrained models.

    Args:
        setup: how the pools were drawn.
        methods: by name, anchors included.
        retrained: models trained without the forget set.
        n_people: in the forget set.
        seed: of draws and permutations.
        n_experiments: experiments of each method.
        provenance: see `Comparison`.
        created_at: aware datetime.
        on_method: called with (methods judged, methods to judge).
    """
    if created_at.tzinfo is None:
        raise BankError(f"Expected an aware datetime, got the naive {created_at!r}.")
    rows = []
    for name, candidates in methods.items():
        rows.append(method_figures(name, setup, candidates, retrained, seed=seed, n_experiments=n_experiments))
        on_method(len(rows), len(methods))
    return Comparison(
        setup=setup,
        n_models=retrained.pool.margins.shape[1],
        n_experiments=n_experiments,
        n_examples=retrained.pool.margins.shape[2],
        n_people=n_people,
        rows=tuple(sorted(rows, key=lambda row: -np.nan_to_num(row.experiments.score.value, nan=-1.0))),
        retrained_forget_accuracy=float((retrained.pool.margins > 0).mean()),
        provenance=provenance,
        created_at=created_at,
    )


def write(comparison: Comparison, folder: Path, *, name: str = "evaluation") -> tuple[Path, Path]:
    """Write `<name>.html` and `<name>.json` into the folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / f"{name}.html", folder / f"{name}.json"
    page.write_text(render_html(comparison), encoding="utf-8")
    data.write_text(json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return page, data


def render_html(comparison: Comparison) -> str:
    """HTML of the page, self-contained; it has no script, no image of a subject and no user id."""
    page, style = template("comparison.html")
    rows = comparison.rows
    a_side = rows[0].experiments.n_models
    ceiling = next((row.experiments.score for row in rows if row.name == RETRAIN), None)
    drawn = drawings.ranked_intervals(
        [title(row.name) for row in rows],
        [(row.experiments.score.value, row.experiments.score.low, row.experiments.score.high) for row in rows],
        ["retrained" if row.name == RETRAIN else "original" if row.is_anchor else "unlearned" for row in rows],
        band=None if ceiling is None else (ceiling.low, ceiling.high),
        axis="score: F × accuracy ratio on the retain set × accuracy ratio on held-out subjects",
        name="scores",
    )
    return str(
        page.render(
            style=Markup(style),  # noqa: S704 (our own file)
            style_hash=base64.b64encode(sha256(style.encode()).digest()).decode(),
            subject=f"A forget set of {comparison.n_examples} images of {_subjects(comparison.n_people)}",
            sentences=_sentences(comparison),
            scores=Markup(drawn),  # noqa: S704 (drawings escape every text they are given)
            rows=[_table_row(row) for row in rows],
            setup=SETUP_WORDS[comparison.setup],
            n_models=comparison.n_models,
            a_side=a_side,
            n_experiments=comparison.n_experiments,
            over_experiments=comparison.setup == "full",
            forget_accuracy=number(comparison.retrained_forget_accuracy, percent=True),
            provenance_rows=list(comparison.provenance.items()),
            footer=f"Made {comparison.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC. "
            "All figures are in the JSON file beside this page.",
        )
    )


def title(name: str) -> str:
    """Title of a method or an anchor."""
    return ANCHORS[name][0] if name in ANCHORS else name


def _ratio(pairs: Sequence[tuple[Array, Array]], seed: int) -> Interval:
    n_pairs = max(10, 100 // len(pairs))
    found = [forgetting_ratio(u, r, seed=seed + i, n_pairs=n_pairs).ratio for i, (u, r) in enumerate(pairs)]
    if len(found) == 1:
        return found[0]
    values = np.array([ratio.value for ratio in found])
    values = values[~np.isnan(values)]
    if not values.size:
        return Interval(np.nan, np.nan, np.nan)
    rng = np.random.default_rng(seed)
    return percentiles(float(values.mean()), resampled_means(values, draws=2000, rng=rng))


def _rejected(pairs: Sequence[tuple[Array, Array]]) -> Interval:
    rejected = [exchangeability(row, r).p_value < ALPHA for u, r in pairs for row in u]
    low, high = clopper_pearson(sum(rejected), len(rejected), alpha=1 - CONFIDENCE)
    return Interval(float(np.mean(rejected)), float(low), float(high))


def _sentences(comparison: Comparison) -> list[str]:
    rows = {row.name: row for row in comparison.rows}
    methods = [row for row in comparison.rows if not row.is_anchor]
    if not methods:
        return ["No method was compared; the anchors below give the scale on these data."]
    best = methods[0]
    says = [
        f"“{best.name}” has the highest score of {len(methods)} methods: {_figure(best.experiments.score)}."
        if len(methods) > 1
        else f"“{best.name}” scores {_figure(best.experiments.score)}."
    ]
    if RETRAIN in rows and DO_NOTHING in rows:
        top, bottom = (rows[name].experiments.score for name in (RETRAIN, DO_NOTHING))
        says.append(f"Perfect forgetting scores {_figure(top)} here, doing nothing {_figure(bottom)}.")
    says.append(f"The F of “{best.name}” is {_figure(best.ratio, digits=2)} times that of perfect forgetting.")
    return says


def _figure(interval: Interval, *, digits: int = 3) -> str:
    return f"{number(interval.value, digits=digits)} ({_range(interval, digits=digits)})"


def _range(interval: Interval, *, digits: int = 3, percent: bool = False) -> str:
    low, high = (number(end, digits=digits, percent=percent) for end in (interval.low, interval.high))
    return f"{low} to {high}"


def _table_row(row: MethodFigures) -> dict[str, Any]:
    e = row.experiments

    def cell(interval: Interval, *, digits: int = 3, percent: bool = False) -> dict[str, str]:
        value = number(interval.value, digits=digits, percent=percent)
        return {"value": value, "range": _range(interval, digits=digits, percent=percent)}

    found = f"{row.detected_share:.0%} rejected, p = {number(row.detection_p)}"
    return {
        "title": title(row.name),
        "note": ANCHORS[row.name][1] if row.is_anchor else "",
        "forgetting": [
            cell(e.score),
            cell(e.forgetting),
            cell(row.ratio, digits=2),
            cell(row.rejected, percent=True),
            {"value": number(row.ks_mean, digits=2), "range": found},
        ],
        "utility": [
            cell(e.retain_ratio),
            cell(e.test_ratio),
            {"value": number(row.forget_accuracy, percent=True), "range": ""},
            {"value": number(row.cost_share, percent=True), "range": ""},
        ],
    }


def _subjects(n: int) -> str:
    return "one subject" if n == 1 else f"{n} subjects, forgotten together"
