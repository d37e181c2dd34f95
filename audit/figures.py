"""A measured value and its bar as text that compares as the numbers do.

Tested in `tests/audit/report/test_wording.py`.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal

MOST_PLACES = 12
_EXACT = Context(prec=400)  # any float64 to 12 places


def beside(value: float, bar: float, *, digits: int = 3, bar_digits: int | None = None) -> tuple[str, str]:
    """Value and bar in decimals. A value that rounding would move onto or across the bar is rounded away from it.

    Args:
        value: finite.
        bar: finite; printed with all its decimals, up to 12.
        digits: decimals of the value; more where the bar has more.
        bar_digits: fewest decimals of the bar; by default `digits`.
    """
    measured, limit = (Decimal(repr(float(number))) for number in (value, bar))
    own_places = min(max(0, -int(limit.normalize().as_tuple().exponent)), MOST_PLACES)
    places = max(digits, own_places)

    def rounded(rounding: str) -> Decimal:
        return measured.quantize(Decimal(1).scaleb(-places), rounding, context=_EXACT)

    bar_text = f"{limit:.{max(digits if bar_digits is None else bar_digits, own_places)}f}"
    printed = Decimal(bar_text)
    text = rounded(ROUND_HALF_EVEN)
    if measured < limit and text >= printed:
        text = rounded(ROUND_FLOOR)
    elif measured > limit and text <= printed:
        text = rounded(ROUND_CEILING)
    return f"{text:f}", bar_text


def beside_percent(value: float, bar: float, *, digits: int = 1) -> tuple[str, str]:
    """The same for shares, in per cent without the sign: 0.05 against a bar of 0.2 is "5.0" and "20"."""
    hundred = [float(Decimal(repr(float(number))) * 100) for number in (value, bar)]
    return beside(*hundred, digits=digits, bar_digits=0)
