"""The audit report: one self-contained HTML page, and the same figures as JSON.

The page holds its style and drawings, runs no script, asks no other host for anything (its own content security policy
forbids it), and reads in print, in the dark and by a screen reader. Every figure drawn stands in a table too. It shows
no photograph unless the caller hands thumbnails over: these are people who asked to be erased.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from audit import drawings, wording
from audit.epsilon import epsilons
from audit.errors import BankError
from audit.statement import json_ready
from audit.wording import number

if TYPE_CHECKING:
    from audit.evaluation import Evaluation

Array = NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_ROWS_DRAWN = 40
BUCKET = 0.5


@dataclass(frozen=True)
class Roc:
    """Curve of an attack that tells unlearned from retrained models; rates `(n_points,)` in [0, 1]."""

    attack: str
    false_positive_rate: Sequence[float]
    true_positive_rate: Sequence[float]
    auc: float


@dataclass(frozen=True)
class Report:
    """What a report is made of.

    Args:
        evaluation: `Evaluation.to_dict()`.
        retrained: margins `(N, n_examples)`; `unlearned` the same of the unlearned bank, none for exact retraining.
        original, deployed: margins `(n_examples,)` of the model before and of the audited one.
        title, subject: of the page; never a user id.
        created_at: aware datetime.
        provenance, cost: rows of these tables, name to value.
        labels: name of each image; by default "Image 1", "Image 2", …
        thumbnails: PNG bytes or none for each image; empty to show none.
        roc: the strongest attack.

    Raises:
        BankError: arrays that do not fit together.
    """

    evaluation: Mapping[str, Any]
    retrained: Array
    unlearned: Array | None
    original: Array
    deployed: Array
    title: str
    subject: str
    created_at: datetime
    provenance: Mapping[str, str] = field(default_factory=dict)
    cost: Mapping[str, str] = field(default_factory=dict)
    labels: Sequence[str] = ()
    thumbnails: Sequence[bytes | None] = ()
    roc: Roc | None = None

    def __post_init__(self) -> None:
        n = np.shape(self.original)[-1]
        shapes = [np.shape(self.retrained)[1:], np.shape(self.deployed)]
        shapes += [] if self.unlearned is None else [np.shape(self.unlearned)[1:]]
        if any(shape != (n,) for shape in shapes):
            raise BankError(f"Expected margins of the same {n} examples everywhere, got {shapes}.")
        for name in ("labels", "thumbnails"):
            if len(getattr(self, name)) not in (0, n):
                raise BankError(f"Expected no {name} or {n}, got {len(getattr(self, name))}.")
        if self.created_at.tzinfo is None:
            raise BankError(f"Expected an aware datetime, got the naive {self.created_at!r}.")

    @property
    def names(self) -> list[str]:
        """Name of each image."""
        return list(self.labels) or [f"Image {i + 1}" for i in range(np.shape(self.original)[-1])]


def report_of(evaluation: Evaluation, **contents: Any) -> Report:
    """Report of an evaluation, arrays and strongest attack taken from it; `contents` as in `Report`, `roc` too."""
    evidence = evaluation.evidence
    contents.setdefault("roc", _strongest(evaluation))
    return Report(
        evaluation=evaluation.to_dict(),
        retrained=evidence.retrained,
        unlearned=evidence.unlearned,
        original=evidence.original,
        deployed=evidence.deployed,
        **contents,
    )


def _strongest(evaluation: Evaluation) -> Roc | None:
    """The form of the membership attack with the larger area; none without an unlearned bank."""
    attacks = [attack for attack in (evaluation.attack, evaluation.quantile_attack) if attack is not None]
    if not attacks:
        return None
    best = max(attacks, key=lambda attack: attack.auc.value)
    return Roc(
        f"offline likelihood ratio, {best.form} form", best.roc_fpr.tolist(), best.roc_tpr.tolist(), best.auc.value
    )


def write(report: Report, folder: Path, *, name: str = "report") -> tuple[Path, Path]:
    """Write `<name>.html` and `<name>.json` into the folder; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / f"{name}.html", folder / f"{name}.json"
    page.write_text(render_html(report), encoding="utf-8")
    data.write_text(json.dumps(to_dict(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return page, data


def to_dict(report: Report) -> dict[str, Any]:
    """The report's figures, JSON-able: the evaluation, and the tables behind the drawings."""
    buckets = epsilon_buckets(report)
    content = {
        "title": report.title,
        "subject": report.subject,
        "created_at": report.created_at,
        "verdict": report.evaluation["verdict"],
        "sentences": wording.verdict_sentences(report.evaluation),
        "evaluation": report.evaluation,
        "quantiles": QUANTILES,
        "distributions": {kind: _quantiles(values) for kind, values in _kinds(report).items()},
        "examples": [
            {
                "name": name,
                "original": report.original[i],
                "deployed": report.deployed[i],
                "retrained": _quantiles(report.retrained[:, i]),
                "unlearned": None if report.unlearned is None else _quantiles(report.unlearned[:, i]),
                "epsilon": _example_epsilons(report)[i],
            }
            for i, name in enumerate(report.names)
        ],
        "epsilon_buckets": None
        if buckets is None
        else {"from": buckets.edges[:-1], "unlearned": buckets.unlearned, "null": buckets.null},
        "roc": report.roc,
        "cost": report.cost,
        "provenance": report.provenance,
        "limits": wording.limits(report.evaluation),
    }
    ready: dict[str, Any] = json_ready(content)
    return ready


@dataclass(frozen=True)
class EpsilonBuckets:
    """Shares of the determined examples in each bucket of ε, for the unlearned bank and without any difference."""

    edges: Array  # (n_buckets + 1,), the last one infinite
    unlearned: Array  # (n_buckets,)
    null: Array  # (n_buckets,)
    n_models_a_side: int
    n_draws: int


def epsilon_buckets(report: Report) -> EpsilonBuckets | None:
    """ε of unlearned against retrained halves, and between disjoint halves of the retrained bank, pooled over draws.

    Both at one size, since ε depends on the number of models; fewer draws where there are more examples. None without
    an unlearned bank, or with too few models to halve.
    """
    u, r = report.unlearned, report.retrained
    if u is None or (m := min(len(r) // 2, len(u))) < 2:
        return None
    n_draws = int(np.clip(200 // r.shape[1], 1, 20))
    rng = np.random.default_rng(report.evaluation["seed"])
    edges = np.append(np.arange(0, math.ceil(math.log(max(m - 1, 2))) + BUCKET, BUCKET), np.inf)
    counts = np.zeros((2, len(edges) - 1))
    for _ in range(n_draws):
        left, right = np.split(rng.permutation(len(r))[: 2 * m], 2)
        mine = rng.permutation(len(u))[:m]
        for kind, bank in enumerate((u[mine], r[right])):
            known = epsilons(bank, r[left])
            counts[kind] += np.histogram(known[~np.isnan(known)], edges)[0]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return EpsilonBuckets(edges, shares[0], shares[1], m, n_draws)


def render_html(report: Report) -> str:
    """The page."""
    template, style = _template()
    evaluation = report.evaluation
    verdict = evaluation["verdict"]
    return template.render(
        style=Markup(style),  # noqa: S704 (our own file)
        style_hash=base64.b64encode(sha256(style.encode()).digest()).decode(),
        title=report.title,
        subject=report.subject,
        verdict_class=verdict.lower(),
        verdict_word=wording.VERDICT_WORDS[verdict],
        sentences=wording.verdict_sentences(evaluation),
        policy_name=evaluation["policy"]["name"],
        checks=[_check_row(check) for check in evaluation["checks"]],
        n_examples=len(report.names),
        n_models=len(report.retrained),
        limits=wording.limits(evaluation),
        cost_rows=[(key, str(value)) for key, value in report.cost.items()],
        provenance_rows=_provenance(report),
        utility_rows=[_utility_row(*row) for row in _utility(evaluation)],
        footer=f"Made {report.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC. The same figures stand in the JSON file "
        "beside this page.",
        **_margin_parts(report),
        **_rank_parts(report),
        **_attack_parts(report),
    )


@cache
def _template() -> tuple[Any, str]:
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("report.html"), (folder / "report.css").read_text(encoding="utf-8")


def _drawn(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 (drawings escape every text they are given)


def _kinds(report: Report) -> dict[str, Array]:
    kinds = {"Retrained models": report.retrained, "Unlearned models": report.unlearned}
    kinds |= {"Audited model": report.deployed, "Original model": report.original}
    return {kind: np.asarray(values) for kind, values in kinds.items() if values is not None}


def _quantiles(values: Array) -> list[float]:
    return [float(q) for q in np.quantile(np.asarray(values).ravel(), QUANTILES, method="closest_observation")]


def _example_epsilons(report: Report) -> Sequence[float | None]:
    score = report.evaluation.get("score")
    found: Sequence[float | None] = score["forgetting"]["epsilons"] if score else [None] * len(report.names)
    return found


def _margin_parts(report: Report) -> dict[str, Any]:
    shown = min(len(report.names), MOST_ROWS_DRAWN)
    u = report.unlearned
    kinds = _kinds(report)
    above = "Above each line, models trained without the image"
    below = ". " if u is None else "; below it, unlearned models. "
    cut = (
        ""
        if shown == len(report.names)
        else f"The first {shown} of {len(report.names)} images are drawn, the table has all."
    )
    return {
        "densities_legend": _legend(
            ("retrained", "area", "models that never saw the images"),
            None if u is None else ("unlearned", "area", "unlearned models"),
            ("unlearned", "rug", "audited model"),
            ("original", "line", "original model"),
        ),
        "by_example_legend": _legend(
            ("retrained", "area", "models that never saw the image"),
            None if u is None else ("unlearned", "area", "unlearned models"),
            ("unlearned", "dot", "audited model"),
            ("original", "diamond", "original model"),
        ),
        "densities": _drawn(
            drawings.margin_densities(report.retrained, u, report.original, report.deployed, name="densities")
        ),
        "densities_caption": "The short strokes are the audited model’s margins, one an image."
        + (
            ""
            if u is None
            else " The nearer the orange lies to the blue, the more completely the images were forgotten."
        ),
        "distribution_head": ["Kind", *(f"{q:.0%}" for q in QUANTILES)],
        "distribution_rows": [
            [kind, *(number(q, digits=2) for q in _quantiles(values))] for kind, values in kinds.items()
        ],
        "by_example": _drawn(
            drawings.margins_by_example(
                report.retrained[:, :shown],
                None if u is None else u[:, :shown],
                report.original[:shown],
                report.deployed[:shown],
                labels=report.names[:shown],
                thumbnails=report.thumbnails[:shown],
                name="by-example",
            )
        ),
        "by_example_caption": f"{above}{below}{cut}",
        "example_head": ["Image", "Original", "Audited", "Retrained", "Unlearned", "ε"],
        "example_rows": [
            [
                name,
                number(report.original[i], digits=2),
                number(report.deployed[i], digits=2),
                number(float(np.median(report.retrained[:, i])), digits=2),
                number(None if u is None else float(np.median(u[:, i])), digits=2),
                number(_example_epsilons(report)[i], digits=2),
            ]
            for i, name in enumerate(report.names)
        ],
    }


def _rank_parts(report: Report) -> dict[str, Any]:
    deployed, original = report.evaluation["deployed"], report.evaluation["original"]
    ranks = deployed["reference_mean_ranks"]
    middle = float(np.median(ranks))
    text = (
        f"If the audited model is like a model trained without the images, it ranks among such models as any of them "
        f"does. Its p-value is {number(deployed['p_value'])}: that share of models would look at least as unusual. The "
        f"original model, which saw the images, gets {number(original['p_value'])}."
    )
    return {
        "ranks_text": text,
        "ranks": _drawn(
            drawings.mean_ranks(ranks, deployed["mean_rank"], original["mean_rank"], name="ranks"),
        ),
        "rank_rows": [
            ["Audited model", number(deployed["mean_rank"]), number(deployed["p_value"])],
            ["Original model", number(original["mean_rank"]), number(original["p_value"])],
            ["Retrained models, lowest", number(min(ranks)), "–"],
            ["Retrained models, median", number(middle), "–"],
            ["Retrained models, highest", number(max(ranks)), "–"],
        ],
    }


def _attack_parts(report: Report) -> dict[str, Any]:
    parts: dict[str, Any] = {"epsilon": None, "roc": None}
    buckets = epsilon_buckets(report)
    if buckets is not None:
        ratio = report.evaluation.get("forgetting")
        quality = ""
        if ratio:
            quality = (
                f" Forgetting quality F is {number(ratio['forgetting']['value'])}; perfect forgetting would have "
                f"{number(ratio['null']['value'])}. Their ratio is {number(ratio['ratio']['value'], digits=2)} "
                f"({number(ratio['ratio']['low'], digits=2)} to {number(ratio['ratio']['high'], digits=2)})."
            )
        parts |= {
            "epsilon_text": "ε says how well the best of many rules tells, from the answer on one image, whether a "
            "model unlearned it or never saw it: 0 is not at all. Even between models that never saw it, ε is above 0, "
            f"for the best rule of many always finds something; the blue steps show how much.{quality}",
            "epsilon_legend": _legend(
                ("unlearned", "bar", "unlearned against retrained models"),
                ("retrained", "step", "retrained against retrained models: no difference"),
            ),
            "epsilon": _drawn(
                drawings.epsilon_histogram(buckets.unlearned, buckets.null, buckets.edges, name="epsilon")
            ),
            "epsilon_caption": f"Share of the images in each bucket, {buckets.n_models_a_side} models a side, over "
            f"{buckets.n_draws} random halvings of the banks.",
            "epsilon_rows": [
                [_bucket_name(low, high), number(mine, percent=True), number(null, percent=True)]
                for low, high, mine, null in zip(
                    buckets.edges[:-1], buckets.edges[1:], buckets.unlearned, buckets.null, strict=True
                )
            ],
        }
    if (roc := report.roc) is not None:
        rates = (0.001, 0.01, 0.05, 0.1, 0.5)
        at = np.interp(rates, roc.false_positive_rate, roc.true_positive_rate)
        parts |= {
            "roc_name": roc.attack,
            "roc": _drawn(
                drawings.roc_curve(roc.false_positive_rate, roc.true_positive_rate, name="roc", attack=roc.attack)
            ),
            "roc_caption": f"Area under the curve {number(roc.auc)}; guessing, the dashed line, has 0.5.",
            "roc_rows": [[f"{rate:g}", number(float(found))] for rate, found in zip(rates, at, strict=True)],
        }
    return parts


def _bucket_name(low: float, high: float) -> str:
    return f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"


_SWATCHES = {
    "area": '<path class="area {0}" d="M0 14Q12 -12 24 14Z"/><path class="line thin {0}" d="M0 14Q12 -12 24 14"/>',
    "line": '<path class="line {0}" d="M0 8H24"/>',
    "rug": '<path class="line {0}" d="M6 3V13M12 3V13M18 3V13"/>',
    "dot": '<circle class="mark {0}" cx="12" cy="8" r="6"/>',
    "diamond": '<path class="mark {0}" d="M12 1l7 7l-7 7l-7 -7Z"/>',
    "bar": '<rect class="bar {0}" x="4" y="1" width="16" height="13"/>',
    "step": '<path class="line {0}" d="M0 13H7V3H17V9H24"/>',
}


def _legend(*entries: tuple[str, str, str] | None) -> Markup:
    """Legend of (kind, swatch, words); entries that are none are left out."""
    items = [
        f'<li><svg viewBox="0 0 24 14" aria-hidden="true">{_SWATCHES[swatch].format(kind)}</svg>{words}</li>'
        for kind, swatch, words in filter(None, entries)
    ]
    return _drawn(f'<ul class="legend">{"".join(items)}</ul>')


def _check_row(check: Mapping[str, Any]) -> dict[str, str]:
    state, word = wording.check_state(check)
    return {
        "title": wording.check_title(check["name"]),
        "sentence": check["sentence"],
        "value": wording.check_value(check, "value"),
        "bar": wording.check_value(check, "bar"),
        "state": state,
        "word": word,
    }


def _utility(evaluation: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    titles = (("retain", "people kept"), ("test", "people never seen"), ("forget", "the images concerned"))
    return [(title, evaluation[name]) for name, title in titles if evaluation.get(name)]


def _utility_row(title: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "title": title,
        "original": number(figures["original"]["accuracy"]),
        "deployed": number(figures["deployed"]["accuracy"]),
        **{name: _interval(figures[name]) for name in ("unlearned", "retrained", "ratio")},
    }


def _interval(interval: Mapping[str, Any] | None) -> dict[str, str]:
    if interval is None:
        return {"value": "–", "range": ""}
    low, high = number(interval["low"]), number(interval["high"])
    return {"value": number(interval["value"]), "range": "" if low == "–" else f"{low} to {high}"}


def _provenance(report: Report) -> list[tuple[str, str]]:
    evaluation, policy = report.evaluation, report.evaluation["policy"]
    rows = {
        "Method": f"{evaluation['method']} (rung {evaluation['rung'] + 1} of {len(policy['ladder'])} of the policy)",
        "Policy": policy["name"],
        "Policy digest": policy["digest"],
        "Models compared": f"{evaluation['n_models']} retrained, {evaluation.get('n_unlearned') or 'no'} unlearned",
        "Images": str(evaluation["n_examples"]),
        "Seed of the audit": str(evaluation["seed"]),
        **report.provenance,
    }
    return [(key, str(value)) for key, value in rows.items()]
