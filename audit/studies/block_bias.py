"""Bias of reference models that left out a whole block, or learned from subjects erased since, for one subject.

The right references for one subject are models trained without exactly this subject (exact retrains). They are audited
against the block's or stale references as if a method had made them: any difference found is due to the references.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from audit.report.drawings import Scale
from audit.statistics.distances import detect
from audit.statistics.exchangeability import rejected_share
from audit.statistics.forgetting import forgetting_ratio
from audit.statistics.margins import Array

ALPHA = 0.05


@dataclass(frozen=True)
class Bias:
    """Result of the audit of exact retrains of one subject.

    Attributes:
        ks_p: p-value of the combined Kolmogorov–Smirnov test over the subject's images, by permuting models.
        ks_mean: mean distance over the images, in [0, 1].
        forgetting_ratio: F / F_null; about 1 for unbiased references.
        turned_away: share of the exact retrains that the exchangeability test rejects at .05.
    """

    ks_p: float
    ks_mean: float
    forgetting_ratio: float
    turned_away: float


def bias(exact: Array, references: Array, *, seed: int) -> Bias:
    """Audit exact retrains `(N, n_examples)` against references `(M, n_examples)` of the same images."""
    found = detect(exact, references, seed=seed)
    ratio = forgetting_ratio(exact, references, seed=seed, n_pairs=50).ratio.value
    return Bias(found.ks_combined_p, found.ks_mean, ratio, rejected_share(exact, references, alpha=ALPHA))


@dataclass(frozen=True)
class Point:
    """Bias of every subject under references of one kind.

    Attributes:
        kind: "block" for references that left out more subjects; "stale" for references that learned from subjects
            erased since; "exact" for further models of the same training, which show the effect of chance.
        share: of the subjects that are left out or erased.
        people: one entry for each subject.
    """

    kind: str
    share: float
    people: tuple[Bias, ...]

    @property
    def p_value(self) -> float:
        """p-value of "no subject's references are biased": the smallest by Bonferroni, valid for shared banks."""
        return min(1.0, len(self.people) * min(subject.ks_p for subject in self.people))

    def mean(self, name: str) -> float:
        """Mean of a figure over the subjects."""
        return float(np.mean([getattr(subject, name) for subject in self.people]))


@dataclass(frozen=True)
class Curve:
    """Points of one data set, in the order in which they are shown."""

    title: str
    n_people: int
    n_models: int
    points: tuple[Point, ...]


def table(curves: Sequence[Curve]) -> str:
    """Markdown."""
    lines = [
        "| data | references | subjects | F / F_null (lowest) | KS distance | KS p | rejected at .05 |",
        "|---|---|---|---|---|---|---|",
    ]
    for curve in curves:
        for point in curve.points:
            lowest = min(subject.forgetting_ratio for subject in point.people)
            lines.append(
                f"| {curve.title} | {_words(point)} | {len(point.people)} | {point.mean('forgetting_ratio'):.2f} "
                f"({lowest:.2f}) | {point.mean('ks_mean'):.3f} | {point.p_value:.3f} | "
                f"{point.mean('turned_away'):.1%} |"
            )
    return "\n".join(lines) + "\n"


def _words(point: Point) -> str:
    if point.kind == "exact":
        return "exact, drawn again"
    return f"{point.share:.1%} " + ("left out" if point.kind == "block" else "erased since")


_COLOURS = ("#1f6fb2", "#d1701f", "#4c8c4a", "#8a5ca8")
_PANELS = (
    ("forgetting_ratio", "F / F_null of exact retrains (1: no bias)", 0.0, 1.4),
    ("turned_away", "exact retrains rejected at .05", 0.0, 0.3),
)


def svg(curves: Sequence[Curve]) -> str:
    """Both figures over the share: one line for each data set and kind, one dot for each subject."""
    width, height, parts = 760, 640, []
    lines = [(curve, kind) for curve in curves for kind in ("block", "stale")]
    shown = [(curve, kind) for curve, kind in lines if any(point.kind == kind for point in curve.points)]
    for panel, (name, label, low, high) in enumerate(_PANELS):
        top = 40 + panel * 270
        x, y = Scale(0, 0.22, 70, width - 30), Scale(low, high, top + 210, top)
        parts.append(f'<text x="70" y="{top - 12}">{escape(label)}</text>')
        for tick in y.ticks(5):
            parts.append(f'<path d="M70 {y(tick):.1f}H{width - 30}" stroke="#ccc"/>')
            parts.append(f'<text x="62" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
        for tick in (0.0, 0.01, 0.02, 0.05, 0.1, 0.2):
            parts.append(f'<path d="M{x(tick):.1f} {top + 210}v5" stroke="#333"/>')
            if tick not in (0.01,):
                text = f"{tick:.0%}"
                parts.append(f'<text x="{x(tick):.1f}" y="{top + 224}" text-anchor="middle">{text}</text>')
        usual = 1.0 if name == "forgetting_ratio" else ALPHA
        parts.append(f'<path d="M70 {y(usual):.1f}H{width - 30}" stroke="#333" stroke-dasharray="4 3"/>')
        for colour, (curve, kind) in zip(_COLOURS, shown, strict=False):
            points = [point for point in curve.points if point.kind == kind]
            path = "L".join(f"{x(point.share):.1f} {y(point.mean(name)):.1f}" for point in points)
            parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            parts += [
                f'<circle cx="{x(point.share):.1f}" cy="{y(getattr(subject, name)):.1f}" r="3" fill="{colour}"/>'
                for point in points
                for subject in point.people
            ]
    for number, (colour, (curve, kind)) in enumerate(zip(_COLOURS, shown, strict=False)):
        what = "left out" if kind == "block" else "erased since"
        left, y0 = 70 + (number % 2) * 340, height - 44 + (number // 2) * 22
        parts.append(f'<path d="M{left} {y0 - 4}h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + 30}" y="{y0}">{escape(curve.title)}: share of the subjects {what}</text>')
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" font-family="sans-serif" '
        f'font-size="13"><title>Bias of block and stale references</title>\n'
        f'<rect width="{width}" height="{height}" fill="#fff"/>\n{body}\n</svg>\n'
    )
