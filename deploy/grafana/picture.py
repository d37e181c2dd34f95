"""The dashboard as an image, drawn from Prometheus' answers to its queries; for the docs, where no Grafana runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from audit.report.drawings import Scale

Series = Mapping[str, Sequence[tuple[float, float]]]
"""Points (Unix time, value) by legend."""

COLUMN, ROW, GAP, TOP = 52.0, 30.0, 8.0, 34.0
COLOURS = 8
STYLE = """
.page{fill:#f4f5f7}.card{fill:#fff;stroke:#d8dbe0}.title{font:600 12px sans-serif;fill:#20242c}
.row{font:700 14px sans-serif;fill:#20242c}.tick,.legend{font:10px sans-serif;fill:#5b6270}
.value{font:600 26px sans-serif;fill:#20242c}.grid{stroke:#e6e8ec}.line{fill:none;stroke-width:1.6}
.c0{stroke:#1f6fb4}.c1{stroke:#d9730d}.c2{stroke:#2f8f4e}.c3{stroke:#b33a6b}.c4{stroke:#6b54b5}.c5{stroke:#0f8b8d}
.c6{stroke:#8a6d1c}.c7{stroke:#5b6270}
@media (prefers-color-scheme:dark){.page{fill:#14161b}.card{fill:#1d2027;stroke:#343945}
.title,.row,.value{fill:#eceef2}.tick,.legend{fill:#a9b0bd}.grid{stroke:#2b303a}}
"""


def draw(dashboard: Mapping[str, Any], recorded: Mapping[int, Series]) -> str:
    """SVG of the dashboard's panels.

    Args:
        dashboard: Grafana's JSON.
        recorded: series by the panel's id.
    """
    times = [at for series in recorded.values() for points in series.values() for at, _ in points]
    x = (min(times), max(*times, min(times) + 1))
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"]) * ROW + TOP + GAP
    parts = []
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        left, top = place["x"] * COLUMN + GAP, place["y"] * ROW + TOP
        if panel["type"] == "row":
            parts.append(_text(left, top + 20, panel["title"], "row"))
            continue
        wide, high = place["w"] * COLUMN - GAP, place["h"] * ROW - GAP
        parts.append(f'<rect class="card" x="{left}" y="{top}" width="{wide}" height="{high}" rx="4"/>')
        parts.append(_text(left + 10, top + 18, panel["title"], "title"))
        unit = panel["fieldConfig"]["defaults"]["unit"]
        inside = (left + 48, top + 30, left + wide - 10, top + high - 34)
        figure = _number if panel["type"] == "stat" else _lines
        parts += figure(recorded.get(panel["id"], {}), unit, x, inside)
    width = 24 * COLUMN + GAP
    title = "The dashboard during one erasure under load"
    names = ", ".join(panel["title"] for panel in dashboard["panels"] if panel["type"] != "row")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {width:g} {height:g}" '
        f'aria-labelledby="title desc"><title id="title">{title}</title><desc id="desc">Panels: {escape(names)}.</desc>'
        f'<style>{STYLE}</style><rect class="page" width="{width:g}" height="{height:g}"/>'
        + _text(GAP, 24, f"Expunge: {title.lower()}, {x[1] - x[0]:.0f} seconds", "row")
        + "\n".join(parts)
        + "</svg>\n"
    )


def _number(series: Series, unit: str, _: tuple[float, float], inside: tuple[float, ...]) -> list[str]:
    points = [point for points in series.values() for point in points if math.isfinite(point[1])]
    shown = readable(max(points)[1], unit) if points else "none open"
    return [_text((inside[0] + inside[2]) / 2 - 19, (inside[1] + inside[3]) / 2 + 16, shown, "value", "middle")]


def _lines(series: Series, unit: str, times: tuple[float, float], inside: tuple[float, ...]) -> list[str]:
    left, top, right, bottom = inside
    values = [value for points in series.values() for _, value in points if math.isfinite(value)]
    x = Scale(times[0], times[1], left, right)
    highest = max([0.0, *values]) or 1.0  # an empty panel has a scale, too
    y = Scale(min([0.0, *values]), highest * 1.05, bottom, top)
    parts = []
    for tick in y.ticks(4):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(_text(left - 5, y(tick) + 3, readable(tick, unit), "tick", "end"))
    span = times[1] - times[0]
    step = next((step for step in (5, 10, 15, 30, 60, 120) if span / step <= (right - left) / 45), 300)
    for seconds in range(0, int(span) + 1, step):
        parts.append(_text(x(times[0] + seconds), bottom + 12, f"{seconds} s", "tick", "middle"))
    at = left - 38
    for number, (legend, points) in enumerate(sorted(series.items())):
        colour = f"c{number % COLOURS}"
        finite = [(time, value) for time, value in points if math.isfinite(value)]
        path = "".join(
            f"{'L' if i and time - finite[i - 1][0] < 3 else 'M'}{x(time):.1f} {y(value):.1f}"
            for i, (time, value) in enumerate(finite)
        )
        parts.append(f'<path class="line {colour}" d="{path}"/>')
        name = legend if len(legend) < 34 else legend[:33] + "…"
        if at + 24 + 5.4 * len(name) < right:
            parts.append(
                f'<line class="line {colour}" x1="{at}" x2="{at + 12}" y1="{bottom + 25}" y2="{bottom + 25}"/>'
            )
            parts.append(_text(at + 16, bottom + 28, name, "legend"))
        at += 30 + 5.4 * len(name)
    return parts


def readable(value: float, unit: str) -> str:
    """A value as Grafana would write it, nearly."""
    if unit == "percentunit":
        return f"{value * 100:.3g} %"
    if unit == "reqps":
        return f"{value:.3g}/s"
    steps = {
        "s": ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
        "bytes": ((1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    }.get(unit, ())
    if not value or not steps:
        return f"{value:.3g}"
    size, name = next(((size, name) for size, name in steps if abs(value) >= size), steps[-1])
    return f"{value / size:.3g} {name}"


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
