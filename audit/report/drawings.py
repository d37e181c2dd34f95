"""Drawings of the report as inline SVG.

Each drawing is one `<svg role="img">` with a title and a description for screen readers, coloured by the page's style
sheet through classes only (no style attributes, so that a strict content security policy holds, and dark mode and
print recolour it). Retrained models are blue, unlearned ones orange, the original grey; markers differ in shape as
well, for readers who do not see the colours.

Tested in `tests/audit/report/test_content.py`.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

WIDTH = 760
PROBABILITIES = (0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)


@dataclass(frozen=True)
class Scale:
    """Linear map of [low, high] onto pixels [start, stop]."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, n: int = 8) -> list[float]:
        """About n round numbers inside."""
        raw = (self.high - self.low) / n
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw)
        return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def density(values: ArrayLike, grid: Array, *, floor: float = 0.0) -> Array:
    """Gaussian kernel density on the grid; bandwidth by Silverman's rule (1986, eq. 3.31), at least `floor`."""
    x = finite(values)
    if not x.size:
        return np.zeros_like(grid)
    quartiles = np.quantile(x, [0.25, 0.75])
    spread = min(x.std(), (quartiles[1] - quartiles[0]) / 1.34) or x.std()
    width = max(0.9 * spread * x.size**-0.2, floor, 1e-9)
    z = (grid[:, None] - x[None, :]) / width
    return np.exp(-0.5 * z * z).sum(axis=1) / (x.size * width * math.sqrt(2 * math.pi))


def finite(values: ArrayLike) -> Array:
    """The finite values, flat."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return flat[np.isfinite(flat)]


def margin_densities(
    retrained: ArrayLike, unlearned: ArrayLike | None, original: ArrayLike, deployed: ArrayLike, *, name: str
) -> str:
    """Distribution of the margins of all forget examples under each kind of model; ticks below for the audited one."""
    banks = [retrained, original, deployed] + ([] if unlearned is None else [unlearned])
    x = _margin_scale(banks, 24, WIDTH - 24)
    top, base, height = 44.0, 258.0, 330
    grid = np.linspace(x.low, x.high, 240)
    floor = (x.high - x.low) / 60
    curves = [("retrained", density(retrained, grid, floor=floor)), ("original", density(original, grid, floor=floor))]
    if unlearned is not None:
        curves.insert(1, ("unlearned", density(unlearned, grid, floor=floor)))
    peak = max(float(curve.max()) for _, curve in curves) or 1.0
    y = Scale(0, peak, base, top + 12)
    parts = [
        _probability_axis(x, top, base),
        _axis(x, base + 26, "margin"),
        _rule(x.start, base, x.stop, base, "baseline"),
    ]
    for kind, curve in curves:
        parts.append(_curve(x, y, grid, curve, kind))
    parts += [_rule(x(v), base + 5, x(v), base + 17, "rug unlearned") for v in finite(deployed)]
    description = (
        f"Curves of the margins of all images. Median under models trained without the images "
        f"{_median(retrained)}, under the original model {_median(original)}, under the audited model "
        f"{_median(deployed)}" + ("." if unlearned is None else f", under all unlearned models {_median(unlearned)}.")
    )
    return _svg(name, height, "Margins of all images concerned, by kind of model", description, parts)


def margins_by_example(
    retrained: Array,
    unlearned: Array | None,
    original: Array,
    deployed: Array,
    *,
    labels: Sequence[str],
    thumbnails: Sequence[bytes | None],
    name: str,
) -> str:
    """One row for each image: retrained models above the line, unlearned ones below, single models as marks."""
    row, top, left = 58.0, 44.0, 128.0
    banks = [retrained, original, deployed] + ([] if unlearned is None else [unlearned])
    x = _margin_scale(banks, left, WIDTH - 24)
    n = len(labels)
    bottom = top + n * row
    grid = np.linspace(x.low, x.high, 160)
    floor = (x.high - x.low) / 90
    parts = [_probability_axis(x, top, bottom), _axis(x, bottom + 8, "margin")]
    for i, label in enumerate(labels):
        middle = top + (i + 0.5) * row
        thumbnail = thumbnails[i] if thumbnails else None
        if thumbnail is not None:
            data = base64.b64encode(thumbnail).decode()
            parts.append(
                f'<image x="0" y="{middle - 24:.1f}" width="48" height="48" preserveAspectRatio="xMidYMid meet" '
                f'href="data:image/png;base64,{data}"/>'
            )
        parts.append(_text(56 if thumbnails else 0, middle + 4, label, "label"))
        parts.append(_rule(x(x.low), middle, x(x.high), middle, "baseline"))
        curves = [("retrained", density(retrained[:, i], grid, floor=floor), -1)]
        if unlearned is not None:
            curves.append(("unlearned", density(unlearned[:, i], grid, floor=floor), 1))
        for kind, curve, side in curves:
            y = Scale(0, float(curve.max()) or 1.0, middle, middle + side * (row / 2 - 5))
            parts.append(_curve(x, y, grid, curve, kind, thin=True))
        parts.append(_diamond(x(float(original[i])), middle, "mark original"))
        parts.append(f'<circle class="mark unlearned" cx="{x(float(deployed[i])):.1f}" cy="{middle:.1f}" r="5"/>')
    description = (
        f"{n} rows, one for each image: the margins of retrained models lie above the line, those of unlearned "
        "models below it; a diamond marks the original model, a dot the audited one. A table follows the figure."
    )
    return _svg(name, int(bottom + 48), "Margins image by image", description, parts)


def mean_ranks(references: ArrayLike, deployed: float, original: float, *, name: str) -> str:
    """Mean ranks of the deployed and the original model among those of the references."""
    values = finite(references)
    x = Scale(0, 1, 24, WIDTH - 24)
    top, base = 64.0, 190.0
    edges = np.linspace(0, 1, 41)
    counts, _ = np.histogram(values, edges)
    y = Scale(0, float(counts.max()) or 1.0, base, top)
    parts = [_axis(x, base + 4, "mean rank on the images: 0 below every reference, 1 above every reference")]
    for i, count in enumerate(counts):
        if count:
            parts.append(_bar(x(edges[i]) + 1, y(count), x(edges[i + 1]) - 1, base, "bar retrained"))
    for kind, value, level in (("original", original, 22.0), ("unlearned", deployed, 42.0)):
        word = "original model" if kind == "original" else "audited model"
        anchor, shift = ("end", -8) if value > 0.7 else ("start", 8)
        parts.append(_rule(x(value), level - 8, x(value), base, f"needle {kind}"))
        mark = _diamond(x(value), level - 8, f"mark {kind}")
        if kind == "unlearned":
            mark = f'<circle class="mark unlearned" cx="{x(value):.1f}" cy="{level - 8:.1f}" r="5"/>'
        parts += [mark, _text(x(value) + shift, level - 4, word, "label", anchor=anchor)]
    parts.append(_rule(x(0), base, x(1), base, "baseline"))
    description = (
        f"Histogram of the mean ranks of {len(values)} references, from {values.min():.2f} to {values.max():.2f}. "
        f"The audited model lies at {deployed:.2f}, the original at {original:.2f}."
    )
    return _svg(name, 236, "The audited model among the references", description, parts)


def epsilon_histogram(unlearned: Array, null: Array, edges: Array, *, name: str) -> str:
    """Shares of the images in each bucket of ε: bars for the unlearned bank, a stepped line for the null."""
    x = Scale(0, len(edges) - 1, 48, WIDTH - 32)
    top, base = 20.0, 200.0
    peak = max(float(unlearned.max()), float(null.max()), 0.05)
    y = Scale(0, math.ceil(peak * 10) / 10, base, top)
    parts = []
    for tick in y.ticks(4):
        parts.append(_rule(x.start, y(tick), x.stop, y(tick), "grid" if tick else "baseline"))
        parts.append(_text(x.start - 8, y(tick) + 4, f"{tick * 100:.0f} %", "tick", anchor="end"))
    for i, share in enumerate(unlearned):
        if share:
            parts.append(_bar(x(i) + 3, y(share), x(i + 1) - 3, base, "bar unlearned"))
    steps = [f"M{x(0):.1f} {base:.1f}"]
    for i, share in enumerate(null):
        steps.append(f"L{x(i):.1f} {y(share):.1f}L{x(i + 1):.1f} {y(share):.1f}")
    parts.append(f'<path class="line retrained" d="{"".join(steps)}L{x.stop:.1f} {base:.1f}"/>')
    for i, edge in enumerate(edges[:-1]):
        parts.append(_text(x(i), base + 18, f"{edge:g}", "tick", anchor="middle"))
    last = edges[-1]
    parts.append(_text(x.stop, base + 18, "more" if math.isinf(last) else f"{last:g}", "tick", anchor="middle"))
    parts.append(_text((x.start + x.stop) / 2, base + 40, "ε of an image", "axis", anchor="middle"))
    description = "Shares of the images by ε. " + "; ".join(
        f"from {edges[i]:g}: unlearned {unlearned[i]:.0%}, null {null[i]:.0%}" for i in range(len(unlearned))
    )
    return _svg(name, 250, "ε image by image, and what it would be without any difference", description, parts)


def roc_curve(false_positive: ArrayLike, true_positive: ArrayLike, *, name: str, attack: str) -> str:
    """Receiver operating characteristic; the diagonal is random guessing."""
    fpr, tpr = np.asarray(false_positive, dtype=np.float64), np.asarray(true_positive, dtype=np.float64)
    x, y = Scale(0, 1, 60, 360), Scale(0, 1, 320, 20)
    parts = [_axis(x, 324, "false positive rate")]
    for tick in y.ticks(5):
        parts.append(_rule(x.start, y(tick), x.stop, y(tick), "grid"))
        parts.append(_text(x.start - 8, y(tick) + 4, f"{tick:g}", "tick", anchor="end"))
    parts.append(_text(20, 170, "true positive rate", "axis", anchor="middle", turn=True))
    parts.append(_rule(x(0), y(0), x(1), y(1), "guess"))
    path = "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in zip(fpr, tpr, strict=True))
    parts.append(f'<path class="line unlearned" d="M{path}"/>')
    description = f"Curve of {attack}. The nearer to the diagonal, the less the attack tells unlearned from retrained."
    return _svg(name, 366, f"Receiver operating characteristic of {attack}", description, parts, width=400)


def ranked_intervals(
    names: Sequence[str],
    figures: Sequence[tuple[float, float, float]],
    kinds: Sequence[str],
    *,
    band: tuple[float, float] | None,
    axis: str,
    name: str,
    title: str = "Methods and their scores",
) -> str:
    """One figure with its interval in each row, on an axis that starts at 0.

    Args:
        names: of the rows.
        figures: (value, low, high) of each row; NaN leaves it empty.
        kinds: "retrained", "unlearned" or "original" for each.
        band: (low, high) shaded through all rows.
        axis: what the figures are.
        name: of the drawing, for its ids.
        title: for screen readers.
    """
    top, step, left = 16.0, 30.0, 232.0
    bottom = top + step * len(names)
    ends = finite([end for figure in figures for end in figure])
    x = Scale(0, float(max(ends.max() if ends.size else 0.0, 0.01)) * 1.06, left, WIDTH - 24)
    parts = [_rule(x(tick), top, x(tick), bottom, "grid") for tick in x.ticks()]
    if band is not None and np.isfinite(band).all():
        parts.append(_bar(x(band[0]), top, x(band[1]), bottom, "area retrained"))
    for i, (label, (value, low, high), kind) in enumerate(zip(names, figures, kinds, strict=True)):
        y = top + (i + 0.5) * step
        parts.append(_text(left - 12, y + 4, label, "label", anchor="end"))
        if math.isfinite(value):
            if math.isfinite(low) and math.isfinite(high):
                parts.append(_rule(x(low), y, x(high), y, f"line {kind}"))
            mark = f'<circle class="mark {kind}" cx="{x(value):.1f}" cy="{y:.1f}" r="6"/>'
            parts.append(_diamond(x(value), y, f"mark {kind}") if kind == "original" else mark)
    parts += [_rule(x.start, bottom, x.stop, bottom, "baseline"), _axis(x, bottom + 4, axis)]
    told = "; ".join(f"{label} {value:.3f}" for label, (value, _, _) in zip(names, figures, strict=True))
    return _svg(name, int(bottom) + 50, title, f"From the first row to the last: {told}.", parts)


def loss_curve(losses: Sequence[float]) -> str:
    """Mean loss of each epoch, as a file of its own: with the style that a page's drawings take from the page."""
    values = np.asarray(losses, dtype=np.float64)
    x = Scale(0, len(values), 60, WIDTH - 24)
    y = Scale(0, float(max(values.max(initial=0.0), 1e-9)) * 1.06, 250, 20)
    parts = [_axis(x, 254, "epoch"), _text(20, 135, "mean loss", "axis", anchor="middle", turn=True)]
    for tick in y.ticks(5):
        parts.append(_rule(x.start, y(tick), x.stop, y(tick), "grid"))
        parts.append(_text(x.start - 8, y(tick) + 4, f"{tick:g}", "tick", anchor="end"))
    path = "L".join(f"{x(epoch):.1f} {y(loss):.1f}" for epoch, loss in enumerate(values, 1))
    told = ", ".join(f"{loss:.3f}" for loss in values)
    parts += [f"<style>{_ALONE}</style>", f'<path class="line" d="M{path}"/>']
    svg = _svg("losses", 296, "Loss by epoch", f"Mean loss of each epoch, from the first on: {told}.", parts)
    return svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


_ALONE = (
    "svg{font:12px system-ui,sans-serif;color:#1f2937}text{fill:currentColor}.grid{stroke:#8884}"
    ".line{fill:none;stroke:#1f6fae;stroke-width:2}@media(prefers-color-scheme:dark){svg{color:#e5e7eb}}"
)


def _svg(name: str, height: int, title: str, description: str, parts: Sequence[str], *, width: int = WIDTH) -> str:
    small = "" if width == WIDTH else " small"
    return (
        f'<svg class="drawing{small}" role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(description)}</desc>{"".join(parts)}</svg>'
    )


def _margin_scale(banks: Sequence[ArrayLike], start: float, stop: float) -> Scale:
    """Scale that holds the central 99 % of every bank and every margin of the single models."""
    ends: list[float] = []
    for bank in banks:
        values = finite(bank)
        if values.size:
            ends += [*np.quantile(values, [0.005, 0.995])] if np.ndim(bank) > 1 else [values.min(), values.max()]
    low, high = (min(ends), max(ends)) if ends else (-1.0, 1.0)
    room = max(0.1 * (high - low), 0.5)
    return Scale(float(low - room), float(high + room), start, stop)


def _axis(x: Scale, y: float, label: str) -> str:
    parts = [_text(x(tick), y + 14, f"{tick:g}".replace("-", "−"), "tick", anchor="middle") for tick in x.ticks()]
    return "".join(parts) + _text((x.start + x.stop) / 2, y + 34, label, "axis", anchor="middle")


def _probability_axis(x: Scale, top: float, bottom: float) -> str:
    """The margin is log(p / (1 − p)), so that every margin is a probability p of the right answer."""
    parts = [_text(x.start, 12, "probability the model gives to the right answer", "axis")]
    reached = -math.inf
    for p in PROBABILITIES:
        margin = math.log(p / (1 - p))
        if not x.low < margin < x.high or x(margin) - reached < 52:
            continue
        reached = x(margin)
        parts.append(_rule(reached, top - 6, reached, bottom, "grid middle" if p == 0.5 else "grid"))
        parts.append(_text(reached, top - 12, f"{p * 100:g} %", "tick", anchor="middle"))
    return "".join(parts)


def _curve(x: Scale, y: Scale, grid: Array, curve: Array, kind: str, *, thin: bool = False) -> str:
    """Line and filled area where the curve is visibly above zero."""
    seen = np.flatnonzero(curve > 0.004 * curve.max())
    if not seen.size:
        return ""
    part = slice(max(seen[0] - 1, 0), seen[-1] + 2)
    line = "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in zip(grid[part], curve[part], strict=True))
    closed = f"{line}L{x(grid[part][-1]):.1f} {y(0):.1f}L{x(grid[part][0]):.1f} {y(0):.1f}Z"
    weight = "line thin" if thin else "line"
    return f'<path class="area {kind}" d="{closed}"/><path class="{weight} {kind}" d="{line}"/>'


def _rule(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _bar(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<rect class="{kind}" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"/>'


def _diamond(x: float, y: float, kind: str) -> str:
    return f'<path class="{kind}" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6Z"/>'


def _text(x: float, y: float, text: str, kind: str, *, anchor: str = "start", turn: bool = False) -> str:
    turned = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turn else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned}>{escape(text)}</text>'


def _median(values: ArrayLike) -> str:
    known = finite(values)
    return f"{np.median(known):.2f}" if known.size else "none"
