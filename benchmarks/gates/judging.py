"""The gate's verdicts on models of known kinds, and rates of them over subjects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from audit.statistics.gate import Gate, gate
from audit.statistics.intervals import clopper_pearson
from audit.statistics.spread import PooledSpread, pooled_spread, tail_mean
from benchmarks.gates.models import FIRST_ORACLE, RUNS, SHARES, Margins, Set

SIZES = (4, 8, 16, 64)
CLASSES = ((3.0, np.inf), (2.0, 3.0), (1.0, 2.0), (-np.inf, 1.0))
N_DRAWS = 3  # of references for each candidate
N_STATED = 5  # originals of each subject whose bank is asked for its power
N_KNOWN = 16  # originals that it then knows, as many as the service trains


@dataclass(frozen=True)
class Rejected:
    """How often candidates of one kind are rejected, and where they lie."""

    any: float
    upper: float
    """By a T too high; `lower` by one too low, `rank` by the mean rank."""
    lower: float
    rank: float
    shift: float
    """Median over candidates of T above its mean over all OUT models, in their standard deviations."""
    n_candidates: int


@dataclass(frozen=True)
class Judged:
    """What the gate says of one subject's models at one number of references."""

    subject: str
    d: float
    retrained: Rejected
    originals: Rejected | None
    stated_power: float
    others: dict[str, Rejected]


def judge(subject: Margins, n_references: int, pooled: PooledSpread | None, rng: np.random.Generator) -> Judged:
    """Every model in the candidate's place, several times, against references drawn among the other OUT models."""
    out, of_out = subject.out, tail_mean(subject.out)

    def bank(but: int | None = None, n_first: int | None = None) -> np.ndarray:
        choice = np.arange(len(out) if n_first is None else min(n_first, len(out)))
        return out[rng.permutation(choice if but is None else np.delete(choice, but))[:n_references]]

    def rejected(models: np.ndarray, judged: Sequence[Gate]) -> Rejected:
        shifts = (tail_mean(models) - of_out.mean()) / of_out.std(ddof=1)
        return Rejected(
            any=_share(judged, lambda g: not g.passed),
            upper=_share(judged, lambda g: g.p_value < g.alpha_upper),
            lower=_share(judged, lambda g: g.p_over < g.alpha_lower),
            rank=_share(judged, lambda g: g.mean_rank_p < g.alpha_rank),
            shift=float(np.median(shifts)),
            n_candidates=len(models),
        )

    def all_of(models: np.ndarray, n_first: int | None = None) -> Rejected:
        return rejected(models, [gate(m, bank(n_first=n_first), pooled=pooled) for m in models for _ in range(N_DRAWS)])

    retrained = [gate(m, bank(but=i), pooled=pooled) for i, m in enumerate(out) for _ in range(N_DRAWS)]
    stated = []
    if len(subject.in_) > 2:
        for i, original in enumerate(subject.in_[:N_STATED]):
            known = np.delete(subject.in_, i, axis=0)[:N_KNOWN]
            stated.append(gate(original, bank(), originals=known, pooled=pooled).power)
    return Judged(
        subject.subject,
        learned_of(subject),
        rejected(out, retrained),
        all_of(subject.in_) if len(subject.in_) else None,
        float(np.mean([power for power in stated if power is not None])) if stated else np.nan,
        # `oracle_matching` knows the margins of the last OUT models, which therefore judge no run.
        {
            kind: all_of(models, n_first=FIRST_ORACLE if kind in RUNS else None)
            for kind, models in subject.others.items()
            if kind not in RUNS or n_references <= min(FIRST_ORACLE, len(out))
        },
    )


def _share(judged: Sequence[Gate], event: Callable[[Gate], bool]) -> float:
    return float(np.mean([event(one) for one in judged]))


def learned_of(subject: Margins) -> float:
    """d′ of the subject, from all models."""
    if len(subject.in_) < 2:
        return np.nan
    return shift(tail_mean(subject.out), tail_mean(subject.in_))


def shift(out: np.ndarray, in_: np.ndarray) -> float:
    """How far IN lies above OUT in standard deviations of OUT."""
    return float((in_.mean() - out.mean()) / out.std(ddof=1))


def pooled_of_others(
    subjects: Sequence[Margins], everybody: Sequence[Margins], n_references: int
) -> dict[int, PooledSpread | None]:
    """For each subject's block the spread over all other blocks, from no more models than a bank of this size has."""
    found: dict[int, PooledSpread | None] = {}
    for block in sorted({subject.block for subject in subjects}):
        others = [one.out[:n_references] for one in everybody if one.block != block and len(one.out) > 2]
        found[block] = pooled_spread(others) if len(others) > 2 else None
    return found


def measure(subjects: Sequence[Margins], everybody: Sequence[Margins]) -> Iterator[tuple[int, str, list[Judged]]]:
    """For each number of references, alone and pooled, every subject's rates."""
    for n_references in SIZES:
        enough = [subject for subject in subjects if len(subject.out) > n_references]
        if not enough:
            continue
        pools = pooled_of_others(enough, everybody, n_references)
        for way in ("alone", "pooled"):
            rng = np.random.default_rng(n_references)
            rows = []
            for i, subject in enumerate(enough):
                pooled = pools[subject.block] if way == "pooled" else None
                if way == "pooled" and pooled is None:
                    continue
                rows.append(judge(subject, n_references, pooled, rng))
                if (i + 1) % 40 == 0:
                    print(f"  N = {n_references}, spread {way}: {i + 1} of {len(enough)} subjects judged", flush=True)
            if rows:
                yield n_references, way, rows


def summary(set_: Set, n_references: int, way: str, rows: Sequence[Judged]) -> dict[str, Any]:
    """Figures over subjects. Subjects of one block are judged by the same models, which counts for the interval."""
    rates = np.array([row.retrained.any for row in rows])
    of_block = {set_.block_of(row.subject): row.retrained.n_candidates for row in rows}
    n_trials = sum(of_block.values())
    low, high = clopper_pearson(round(float(rates.mean()) * n_trials), n_trials, alpha=0.05)
    classes = []
    for bottom, top in CLASSES:
        inside = [row for row in rows if bottom <= row.d < top]
        known = [row.originals.any for row in inside if row.originals]
        classes.append(
            {
                "d": [bottom, top],
                "n_subjects": len(inside),
                "power": float(np.mean(known)) if known else None,
                "stated": float(np.mean([row.stated_power for row in inside])) if inside else None,
                "others": {kind: _mean(inside, kind) for kind in (*SHARES, *RUNS) if _has(inside, kind)},
            }
        )
    return {
        "n_references": n_references,
        "spread": way,
        "n_subjects": len(rows),
        "false_positive_rate": float(rates.mean()),
        "n_retrained": n_trials,
        "interval": [float(low), float(high)],
        "over_subjects": [float(rates.min()), float(np.median(rates)), float(rates.max())],
        "sides": {
            side: float(np.mean([getattr(row.retrained, side) for row in rows])) for side in ("upper", "lower", "rank")
        },
        "classes": classes,
        "subjects": [asdict(row) for row in rows],
    }


def _has(rows: Sequence[Judged], kind: str) -> bool:
    return any(kind in row.others for row in rows)


def _mean(rows: Sequence[Judged], kind: str) -> dict[str, float]:
    """Means over subjects of the shares rejected, and of the subjects' median shifts."""
    found = [row.others[kind] for row in rows if kind in row.others]
    return {name: float(np.mean([getattr(one, name) for one in found])) for name in ("any", "upper", "lower", "shift")}
