"""From figures of single erasures to prices: of a stream, of a year, and where one way begins to cost less."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from audit.report.drawings import WIDTH, Scale

N_BLOCKS = 20
"""Of five per cent of the subjects each, in sets that are not tiny."""
REFERENCES, ORIGINALS = 8, 16
"""Trainings of a block's bank under `standard`, and of the bank of originals."""
REFERENCES_OF_FORMER = 64
STALENESS, STALENESS_OF_ORIGINALS = 0.05, 0.25
"""Share of the training subjects that may be gone before a bank is trained anew."""
TRAINING_SHARE = 0.8
"""Of the subjects; a block's bank learned from all of these but its own twentieth."""


@dataclass(frozen=True)
class Stream:
    """A way's whole stream of erasures, in processor seconds.

    Attributes:
        n: erasures in the stream.
        n_measured: of them measured; what is said of the stream is extrapolated if they are fewer.
        ahead: before the first request.
        request, renewal: mean of an erasure, at its request and after it.
        references: part of `request` in which references were trained.
        median_request: of the erasures that trained no references at their request; if all did, without these.
        look: median of an erasure's renewal, which mostly finds nothing to train.
        idle: a second, while the service has nothing to do.
    """

    n: int
    n_measured: int
    n_completed: int
    n_interrupted: int
    ahead: float
    request: float
    renewal: float
    references: float
    median_request: float
    look: float
    everything: float
    idle: float
    methods: dict[str, int]

    @property
    def judged(self) -> float:
        """Mean at the request without references: as if they had been there."""
        return self.request - self.references

    @property
    def for_each(self) -> float:
        """Of everything, for each erasure that was completed; infinite if none was."""
        n_completed = self.n * self.n_completed / self.n_measured
        return self.everything / n_completed if n_completed else math.inf


def idle_rate(found: Sequence[Mapping[str, Any]]) -> float:
    """Processor seconds a second that a way's service takes while it has nothing to do, median."""
    rested = [one for one in found if one.get("idle_wall_seconds")]
    return median(one["idle_seconds"] / one["idle_wall_seconds"] for one in rested) if rested else 0.0


def references_in(found: Mapping[str, Any], idle: float = 0.0) -> float:
    """Processor seconds of an erasure in which its run said that it trains references, without the idle service's."""
    phases = [spent for phase, spent in found.get("phases", {}).items() if "reference" in phase]
    return sum(max(0.0, seconds - idle * lasted) for seconds, lasted in phases)


def stream_of(found: Sequence[Mapping[str, Any]], *, ahead: float, n: int) -> Stream:
    """What was measured, and the whole stream: measured, or extrapolated by `banks_expected`.

    What the service takes anyway while it waits for requests is left out: it grows with the time that a request takes
    on a busy machine.

    Args:
        found: figures of single erasures in their order.
        n: erasures in the whole stream.
    """
    measured = [one for one in found if "interrupted" not in one]
    if not measured:
        raise ValueError("Expected at least one erasure that was measured from its beginning to its end.")
    idle = idle_rate(measured)
    requests = [one["request_seconds"] - idle * one.get("wall_seconds", 0.0) for one in measured]
    references = [references_in(one, idle) for one in measured]
    built = [seconds for seconds in references if seconds > 0.2 * max(references)] if max(references) > 10 else []
    pairs = list(zip(requests, references, strict=True))
    without = [request for request, part in pairs if part not in built] or [request - part for request, part in pairs]
    renewals = [one.get("renewal_seconds", 0.0) - idle * one.get("renewal_wall_seconds", 0.0) for one in measured]
    renewal = mean(renewals)
    per_bank = mean(built) if built else 0.0
    judged = mean(requests) - mean(references)
    n_more = n - len(measured)
    more_banks = banks_expected(n_more, n_built=len(built)) if built else 0.0
    everything = ahead + sum(requests) + len(measured) * renewal + n_more * (judged + renewal) + more_banks * per_bank
    methods: dict[str, int] = {}
    for one in measured:
        methods[one.get("method", one["state"])] = methods.get(one.get("method", one["state"]), 0) + 1
    return Stream(
        n=n, n_measured=len(measured), n_completed=sum(one["state"] == "completed" for one in measured),
        n_interrupted=len(found) - len(measured), ahead=ahead, request=mean(requests), renewal=renewal,
        references=mean(references), median_request=median(without), everything=everything, methods=methods,
        idle=idle, look=median(renewals),
    )  # fmt: skip


def banks_expected(n_erasures: float, *, n_built: int = 0) -> float:
    """Further banks that so many erasures ask for, of subjects drawn at random, where some blocks have theirs."""
    return (N_BLOCKS - n_built) * (1 - (1 - 1 / N_BLOCKS) ** n_erasures)


@dataclass(frozen=True)
class Unit:
    """What one training costs at a number of subjects.

    Attributes:
        process: processor seconds of a process of its own that trains once and ends.
        training: of the training alone.
        measured: or extrapolated from other numbers of subjects.
    """

    process: float
    training: float
    measured: bool


def unit_at(n_subjects: int, measured: Mapping[int, Unit]) -> Unit:
    """The unit; between and beyond measured numbers on a straight line through the first and the last of them."""
    if n_subjects in measured:
        return measured[n_subjects]
    low, high = min(measured), max(measured)
    if low == high:
        raise ValueError("Expected units at two numbers of subjects at least.")
    slope = (measured[high].training - measured[low].training) / (high - low)
    training = measured[high].training + slope * (n_subjects - high)
    start = mean(unit.process - unit.training for unit in measured.values())
    return Unit(start + training, training, measured=False)


@dataclass(frozen=True)
class Costs:
    """A build's unit prices at the number of subjects where its stream was measured.

    Attributes:
        fixed: processor seconds of a request beside its trainings, and of the renewal that trains nothing.
        trainings: at the request, beside references.
        reference: processor seconds of a reference over those of a training.
        references: models of a block's bank. `originals`: of the other bank, 0 if there is none.
        ahead: whether all banks are built before the first request, or each when it is first needed.
    """

    fixed: float
    trainings: float
    reference: float = 1.0
    references: int = REFERENCES
    originals: int = ORIGINALS
    ahead: bool = True


def first_year(costs: Costs, n_erasures: int, n_subjects: int, unit: Unit) -> float:
    """Price of an erasure in trainings, everything counted, in a year that begins without any bank."""
    cycle = max(1, math.floor(STALENESS * TRAINING_SHARE * (1 - 1 / N_BLOCKS) * n_subjects))
    if costs.ahead:
        banks = N_BLOCKS * (1 + n_erasures // cycle)
        ahead = banks * costs.references
        longer = max(1, math.floor(STALENESS_OF_ORIGINALS * TRAINING_SHARE * n_subjects))
        ahead += costs.originals * (1 + n_erasures // longer)
    else:
        whole, rest = divmod(n_erasures, cycle)
        ahead = costs.references * (whole * banks_expected(cycle) + banks_expected(rest))
    seconds = ahead * costs.reference * unit.training / n_erasures + costs.trainings * unit.training + costs.fixed
    return seconds / unit.process


def least_that_pays(costs: Costs, n_subjects: int, unit: Unit, *, qualification: float = 0.0) -> int | None:
    """Fewest erasures in the first year at which each costs less than plain retraining; None if it never does.

    Args:
        qualification: trainings paid ahead besides banks.
    """
    for n_erasures in range(1, int(TRAINING_SHARE * n_subjects) + 1):
        further = qualification * unit.training / unit.process / n_erasures
        if first_year(costs, n_erasures, n_subjects, unit) + further <= 1:
            return n_erasures
    return None


def line_chart(lines: Sequence[tuple[str, str, Sequence[tuple[float, float]]]], *, unmeasured: Sequence[str]) -> str:
    """Price of an erasure over erasures a year, both in powers of ten.

    Args:
        lines: label, colour and points of each. unmeasured: labels of lines drawn dashed.
    """
    x, y = Scale(0, 3, 64, WIDTH - 210), Scale(-1, 3, 330, 24)
    parts = []
    for power in range(4):
        place = x(power)
        parts.append(f'<line class="grid" x1="{place:.1f}" y1="{y.stop}" x2="{place:.1f}" y2="{y.start}"/>')
        parts.append(f'<text x="{place:.1f}" y="{y.start + 18}" text-anchor="middle">{10**power:,}</text>')
    for power in range(-1, 4):
        place = y(power)
        parts.append(f'<line class="grid" x1="{x.start}" y1="{place:.1f}" x2="{x.stop}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{x.start - 8}" y="{place + 4:.1f}" text-anchor="end">{10**power:,g}</text>')
    parts.append(f'<text x="{(x.start + x.stop) / 2}" y="{y.start + 40}" text-anchor="middle">erasures a year</text>')
    middle = (y.start + y.stop) / 2
    parts.append(
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        "trainings for each, everything counted</text>"
    )
    ends = sorted(((y(math.log10(points[-1][1])), label) for label, _, points in lines), reverse=True)
    placed: dict[str, float] = {}
    for place, label in ends:  # from the lowest line up, none on another
        placed[label] = min(place, min(placed.values(), default=place + 16) - 16)
    for label, colour, points in lines:
        path = "L".join(f"{x(math.log10(a)):.1f} {y(math.log10(b)):.1f}" for a, b in points)
        dashed = ' stroke-dasharray="6 4"' if label in unmeasured else ""
        parts.append(f'<path fill="none" stroke="{colour}" stroke-width="2"{dashed} d="M{path}"/>')
        parts.append(f'<text x="{x.stop + 10}" y="{placed[label] + 4:.1f}" fill="{colour}">{label}</text>')
    told = "; ".join(f"{label}: {points[0][1]:.2g} at {points[0][0]:g}, {points[-1][1]:.2g} at {points[-1][0]:g}"
                     for label, _, points in lines)  # fmt: skip
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {WIDTH} 384" width="{WIDTH}" height="384" '
        'aria-labelledby="price-title price-desc"><title id="price-title">Price of an erasure over erasures a year'
        f'</title><desc id="price-desc">Trainings for each erasure. {told}.</desc><style>text{{font:12.5px system-ui,'
        "sans-serif}text:not([fill]){fill:#4c5560}.grid{stroke:#dfe3e8}</style>"
        f'<rect fill="#fff" width="100%" height="100%"/>{"".join(parts)}</svg>\n'
    )
