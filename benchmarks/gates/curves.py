"""Lines from 0 to 1 against something from 0 to 1, as a drawing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_LEFT, _RIGHT, _TOP, _BASE, _WIDTH, _HEIGHT = 70.0, 520.0, 24.0, 324.0, 760, 380


@dataclass(frozen=True)
class Curve:
    """One line: its name, its colour as a class of the drawings' style, and its points (x, y), each in [0, 1]."""

    name: str
    kind: str
    points: tuple[tuple[float, float], ...]


def curves(lines: Sequence[Curve], *, x_axis: str, y_axis: str, name: str, title: str) -> str:
    """A drawing of a page; each line bears its name at its right end, moved down where names would meet."""
    parts = []
    for i in range(5):
        share = i / 4
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{_y(share):.1f}" x2="{_RIGHT}" y2="{_y(share):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{_y(share) + 4:.1f}" text-anchor="end">{share:g}</text>')
        parts.append(f'<text x="{_x(share):.1f}" y="{_BASE + 20}" text-anchor="middle">{share:g}</text>')
    parts.append(f'<text x="{(_LEFT + _RIGHT) / 2}" y="{_BASE + 44}" text-anchor="middle">{escape(x_axis)}</text>')
    middle = (_TOP + _BASE) / 2
    parts.append(
        f'<text x="20" y="{middle}" text-anchor="middle" transform="rotate(-90 20 {middle})">{escape(y_axis)}</text>'
    )
    lowest = _TOP - 20
    for line in sorted(lines, key=lambda line: -line.points[-1][1]):
        path = "L".join(f"{_x(a):.1f} {_y(b):.1f}" for a, b in line.points)
        parts.append(f'<path class="line {line.kind}" d="M{path}"/>')
        parts += [
            f'<circle class="mark {line.kind}" cx="{_x(a):.1f}" cy="{_y(b):.1f}" r="3.5"/>' for a, b in line.points
        ]
        lowest = max(_y(line.points[-1][1]) + 4, lowest + 18)
        parts.append(f'<text class="label" x="{_RIGHT + 14}" y="{lowest:.1f}">{escape(line.name)}</text>')
    told = "; ".join(f"{line.name}: " + ", ".join(f"{b:.2f} at {a:g}" for a, b in line.points) for line in lines)
    return (
        f'<svg class="drawing" role="img" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{escape(title)}</title>'
        f'<desc id="{name}-desc">{escape(told)}.</desc>{"".join(parts)}</svg>'
    )


def _x(share: float) -> float:
    return _LEFT + share * (_RIGHT - _LEFT)


def _y(share: float) -> float:
    return _BASE - share * (_BASE - _TOP)
