"""The report's page: one HTML file with its style and drawings, for screens, print, dark mode and screen readers.

The page runs no script and loads nothing; its content security policy forbids both. Every figure drawn is in a table
too.

Tested in `tests/audit/report/test_content.py`.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from datetime import UTC
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from audit.report import drawings, wording
from audit.report.content import (
    QUANTILES,
    Report,
    epsilon_buckets,
    example_epsilons,
    margins_by_kind,
    quantiles,
    to_dict,
)
from audit.report.wording import number

MOST_ROWS_DRAWN = 40


def write(report: Report, folder: Path, *, name: str = "report") -> tuple[Path, Path]:
    """Write `<name>.html` and `<name>.json` into the folder and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    page, data = folder / f"{name}.html", folder / f"{name}.json"
    page.write_text(render_html(report), encoding="utf-8")
    data.write_text(json.dumps(to_dict(report), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return page, data


def render_html(report: Report) -> str:
    """HTML of the page."""
    page, style = template("report.html")
    evaluation = report.evaluation
    verdict = evaluation["verdict"]
    return page.render(
        style=Markup(style),  # noqa: S704 (our own file)
        style_hash=base64.b64encode(sha256(style.encode()).digest()).decode(),
        title=report.title,
        subject=report.subject,
        verdict_class=verdict.lower(),
        verdict_word=wording.VERDICT_WORDS[verdict],
        learned=wording.learned_sentences(evaluation),
        sentences=wording.verdict_sentences(evaluation),
        policy_name=evaluation["policy"]["name"],
        checks=[check_row(check) for check in evaluation["checks"]],
        n_examples=len(report.names),
        n_models=len(report.retrained),
        limits=wording.limits(evaluation),
        cost_rows=[(key, str(value)) for key, value in report.cost.items()],
        provenance_rows=_provenance(report),
        utility_rows=[_utility_row(*row) for row in _utility(evaluation)],
        footer=f"Made {report.created_at.astimezone(UTC):%Y-%m-%d %H:%M} UTC. The same figures are in the JSON file "
        "beside this page.",
        **_margin_parts(report),
        gate_rows=_gate_rows(evaluation.get("gate")),
        n_views=(evaluation.get("gate") or {}).get("n_views"),
        **_rank_parts(report),
        **_attack_parts(report),
    )


@cache
def template(name: str) -> tuple[Any, str]:
    """A template of this folder, and the style sheet that every page contains."""
    folder = Path(__file__).parent / "templates"
    environment = Environment(
        loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name), (folder / "report.css").read_text(encoding="utf-8")


def _drawn(svg: str) -> Markup:
    return Markup(svg)  # noqa: S704 (drawings escape every text they are given)


def _margin_parts(report: Report) -> dict[str, Any]:
    shown = min(len(report.names), MOST_ROWS_DRAWN)
    u = report.unlearned
    kinds = margins_by_kind(report)
    above = "Above each line, models trained without the image"
    below = ". " if u is None else "; below it, unlearned models. "
    cut = (
        ""
        if shown == len(report.names)
        else f"The first {shown} of {len(report.names)} images are drawn; the table has all of them."
    )
    return {
        "densities_legend": _legend(
            ("retrained", "area", "models trained without the images"),
            None if u is None else ("unlearned", "area", "unlearned models"),
            ("unlearned", "rug", "audited model"),
            ("original", "line", "original model"),
        ),
        "by_example_legend": _legend(
            ("retrained", "area", "models trained without the image"),
            None if u is None else ("unlearned", "area", "unlearned models"),
            ("unlearned", "dot", "audited model"),
            ("original", "diamond", "original model"),
        ),
        "densities": _drawn(
            drawings.margin_densities(report.retrained, u, report.original, report.deployed, name="densities")
        ),
        "densities_caption": "The short strokes are the audited model’s margins, one for each image."
        + ("" if u is None else " Where the images are forgotten, the orange and the blue curve agree."),
        "distribution_head": ["Kind", *(f"{q:.0%}" for q in QUANTILES)],
        "distribution_rows": [
            [kind, *(number(q, digits=2) for q in quantiles(values))] for kind, values in kinds.items()
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
                number(example_epsilons(report)[i], digits=2),
            ]
            for i, name in enumerate(report.names)
        ],
    }


def _gate_rows(gate: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """What the gate measured, name to value; empty where it was not asked."""
    if gate is None:
        return []

    def level(name: str) -> str:
        return f"at least {number(gate[name], digits=4)} is asked"

    rows = [
        ("Statistic T of the audited model", number(gate["statistic"])),
        ("T of retrained models", f"{number(gate['reference_mean'])} ± {number(gate['reference_spread'])}"),
        ("t, degrees of freedom", f"{number(gate['t'])}, {number(gate['degrees_of_freedom'], digits=1)}"),
        ("p of a T this high: forgot too little", f"{number(gate['p_value'], digits=4)}; {level('alpha_upper')}"),
        ("p of a T this low: pushed too far", f"{number(gate['p_over'], digits=4)}; {level('alpha_lower')}"),
        ("p of the mean rank, both ways", f"{number(gate['mean_rank_p'], digits=4)}; {level('alpha_rank')}"),
    ]
    if gate["permutation_p"] is not None:
        exact = (number(gate[name], digits=4) for name in ("permutation_p", "permutation_p_over"))
        rows.append(("The same by exact permutation, high and low", ", ".join(exact)))
    if gate["learned"] is not None:
        learned, ratio = gate["learned"], gate["evidence_ratio"]
        of_learned = [number(learned[name], digits=2) for name in ("value", "low", "high")]
        of_ratio = [number(ratio[name], digits=2) for name in ("value", "low", "high")]
        rows += [
            ("d′: how much had been learned", "{} ({} to {})".format(*of_learned)),
            ("Power against a model that forgot nothing", number(gate["power"], digits=2)),
            ("Originals that the gate rejects", f"{gate['n_originals_rejected']} of {gate['n_originals']}"),
            ("Evidence ratio, without over with the images", "{} ({} to {})".format(*of_ratio)),
        ]
    return rows


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
            "model unlearned the image or was trained without it; 0 means not at all. ε between groups of models "
            "trained without the image is above 0 as well, because it is the largest over many rules; the blue steps "
            f"show how large.{quality}",
            "epsilon_legend": _legend(
                ("unlearned", "bar", "unlearned against retrained models"),
                ("retrained", "step", "retrained against retrained models"),
            ),
            "epsilon": _drawn(
                drawings.epsilon_histogram(buckets.unlearned, buckets.null, buckets.edges, name="epsilon")
            ),
            "epsilon_caption": f"Share of the images in each bucket, {buckets.n_models_a_side} models a side, over "
            f"{buckets.n_draws} random splits of the banks.",
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
            "roc_caption": f"Area under the curve {number(roc.auc)}; random guessing, the dashed line, has 0.5.",
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
    """Legend of (kind, swatch, words); entries that are None are left out."""
    items = [
        f'<li><svg viewBox="0 0 24 14" aria-hidden="true">{_SWATCHES[swatch].format(kind)}</svg>{words}</li>'
        for kind, swatch, words in filter(None, entries)
    ]
    return _drawn(f'<ul class="legend">{"".join(items)}</ul>')


def check_row(check: Mapping[str, Any]) -> dict[str, str]:
    """A row of the table of checks."""
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
    titles = (("retain", "retain set"), ("test", "held-out subjects"), ("forget", "forget set"))
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
