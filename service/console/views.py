"""From rows to what a page shows: words for moments and spans, progress, the timeline, the ladder. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final

from audit.policy import Policy
from audit.report import wording
from service.erasure.price import rows
from service.models.shadowing import OTHERS, Counts, Figures
from service.requests import states
from service.store.tables import Attempt, RequestEvent, Run

_COUNTED = re.compile(r"(?P<what>.*?),?\s+(?P<done>\d+)/(?P<wanted>\d+)(?:, (?P<end>all by .*))?")
_UNITS: Final = ((86400, "day"), (3600, "hour"), (60, "minute"))
STATE_WORDS: Final = {"needs_attention": "needs attention", "no_data_held": "no data held"}
STAGES: Final = ("unlearning", "auditing", "deploying", "purging", "completed")
REASON_WORDS: Final = {
    "mass_deletion": "One call named an unusually large share of all people: somebody must confirm it.",
    "legal_hold": "Filed with a legal hold: the data must be kept until somebody lifts it.",
}


def words(name: str | None) -> str:
    """A state, outcome, regulation or ground as people write it."""
    return STATE_WORDS.get(name or "", (name or "").replace("_", " "))


def reason_words(reason: str | None) -> str:
    """Why a request needs attention."""
    return REASON_WORDS.get(reason or "", reason or "")


def moment(value: datetime) -> str:
    """A time as people read it."""
    return f"{value:%d %b %Y, %H:%M:%S} UTC"


def day(value: datetime) -> str:
    """A day as people read it."""
    return f"{value:%d %b %Y}"


def short(name: str) -> str:
    """The first letters of an id or digest, and the last of a request's, which tell one of a batch from the next."""
    return f"{name[:8]}…{name[-4:]}" if len(name) == 41 else f"{name[:12]}…" if len(name) > 16 else name


def span(seconds: float) -> str:
    """A length of time in its largest two units: "3 min 20 s"; below ten seconds with a tenth."""
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size} {unit}" + (f" {rest} {smaller}" if rest else "")
    return f"{whole} s"


def distance(at: datetime, now: datetime) -> str:
    """How far a deadline is: "in 12 days", "3 hours late"."""
    seconds = (at - now).total_seconds()
    count, unit = next(
        ((int(abs(seconds) // size), name) for size, name in _UNITS if abs(seconds) >= size), (0, "minute")
    )
    many = f"{count} {unit}{'' if count == 1 else 's'}" if count else "less than a minute"
    return f"in {many}" if seconds >= 0 else f"{many} late"


def size(n_bytes: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


@dataclass(frozen=True)
class Progress:
    """What a run is doing; without counts when it is one thing."""

    what: str
    done: int | None = None
    wanted: int | None = None
    end: str = ""  # when it is expected to be done

    @property
    def percent(self) -> int | None:
        """Share that is done."""
        return 100 * self.done // self.wanted if self.done is not None and self.wanted else None

    @property
    def spoken(self) -> str:
        """For screen readers: counts in quarters, so that a bar does not talk all the time."""
        if self.percent is None:
            return self.what
        return f"{self.what}: {('begun', 'a quarter', 'half', 'three quarters', 'all')[self.percent // 25]}"


def progress_of(note: str) -> Progress | None:
    """A run's note: "dilute: unlearned models 3/64, all by 14:05 UTC" is counted, any other text is itself."""
    found = _COUNTED.fullmatch(note)
    if found:
        return Progress(found["what"], int(found["done"]), int(found["wanted"]), found["end"] or "")
    return Progress(note) if note else None


@dataclass(frozen=True)
class Moment:
    """One entry of a request's timeline; `lasted` is how long the state lasted, or has until now."""

    state: str
    at: datetime
    lasted: str
    note: str
    is_now: bool = False
    is_move: bool = True


def timeline(
    events: Sequence[RequestEvent], now: datetime, note_of: Callable[[RequestEvent], str] = attrgetter("note")
) -> list[Moment]:
    """A request's moves and notes, oldest first, each with the time until the next move."""
    moves = [event for event in events if event.from_state != event.to_state]
    until = {id(event): later.at for event, later in pairwise(moves)}
    rows = []
    for event in events:
        is_move, is_last = id(event) in until or event in moves[-1:], event in moves[-1:]
        is_now = is_last and event.to_state not in states.ENDS
        end = until.get(id(event), now if is_now else None)
        lasted = span((end - event.at).total_seconds()) if end is not None else ""
        rows.append(Moment(event.to_state, event.at, lasted, note_of(event), is_now, is_move))
    return rows


@dataclass(frozen=True)
class Rung:
    """One step of a run's ladder: tried, being tried, or waiting behind one that may do."""

    step: int
    method: str
    state: str  # PASSED | FAILED | UNDETERMINED | now | waiting
    attempt: Attempt | None = None
    checks: tuple[Mapping[str, str], ...] = ()
    took: str = ""
    reasons: tuple[str, ...] = field(default=())
    learned: str = ""
    price: Mapping[str, str] = field(default_factory=dict)
    last: int | None = None  # of several waiting steps of one method, shown as one


def ladder(steps: Sequence[str], attempts: Iterable[Attempt], run: Run | None, now: datetime) -> list[Rung]:
    """The steps of a run's policy with what became of each; steps behind a success or an end are left out."""
    tried = {attempt.step: attempt for attempt in attempts}
    rungs = []
    for step in range(max([len(steps), *(step + 1 for step in tried)])):
        attempt = tried.get(step)
        if attempt is not None:
            rungs.append(_tried(attempt, run, now))
        elif run is not None and run.finished_at is None and not any(r.state == "PASSED" for r in rungs):
            before = rungs[-1] if rungs else None
            if before is not None and (before.method, before.state) == (steps[step], "waiting"):
                rungs[-1] = replace(before, last=step)
            else:
                rungs.append(Rung(step, steps[step], "waiting"))
    return rungs


def _tried(attempt: Attempt, run: Run | None, now: datetime) -> Rung:
    figures = attempt.figures or {}
    checks = tuple(check_row(check) for check in figures.get("checks", ()))
    is_open = run is not None and run.finished_at is None
    end = attempt.finished_at or (now if is_open else None)
    took = span((end - attempt.started_at).total_seconds()) if end else ""
    state = attempt.verdict or ("now" if is_open else "stopped")
    learned = " ".join(wording.learned_sentences(figures))
    price = rows(figures["price"]) if "price" in figures else {}
    return Rung(attempt.step, attempt.method, state, attempt, checks, took, tuple(attempt.reasons), learned, price)


def check_row(check: Mapping[str, Any]) -> dict[str, str]:
    """One bar of an audit in words."""
    style, word = wording.check_state(check)
    return {
        "title": wording.check_title(check["name"]),
        "value": wording.check_value(check, "value"),
        "bar": wording.check_value(check, "bar"),
        "sentence": check["sentence"],
        "style": style,
        "word": word,
    }


def bars(policy: Policy) -> list[tuple[str, str, str]]:
    """A policy's thresholds: what, the threshold, and what it means."""

    def asked(alpha: float) -> str:
        return f"p ≥ {alpha:g}" if alpha else "reported only"

    whose = "the method's qualification" if policy.qualification else "runs of the method for the request"
    return [
        ("Reference models", f"≥ {policy.n_models}", "models trained without the person"),
        ("Accuracy on the retain set", f"≥ {policy.retain_ratio_min:.0%}", "of the retrained models'"),
        ("Accuracy on held-out subjects", f"≥ {policy.test_ratio_min:.0%}", "of the retrained models'"),
        ("Gate", asked(policy.gate_alpha), "of the deployed model, all views; higher on later rungs"),
        ("Exchangeability", asked(policy.exchangeability_alpha), "of the deployed model; higher on later rungs"),
        ("Forgetting quality", f"≥ {policy.forgetting_ratio_min:g}", f"F / F_null of {whose}; 1 is perfect forgetting"),
        ("Difference on the forget set", asked(policy.detection_alpha), "combined Kolmogorov–Smirnov test"),
        ("Staleness of the bank", f"≤ {policy.staleness_max:.0%}", "subjects erased since it was trained"),
        ("Cost", f"≤ {policy.cost_share_max:.0%}", "of retraining's time, one run"),
        (
            "Changed labels of live predictions",
            f"≤ {policy.shadow_changed_max:.1%}" if policy.shadow_changed_max else "reported only",
            "of the candidate beside the model in service, if it is shadowed",
        ),
    ]


def shadow_rows(counts: Counts, classes: Sequence[str]) -> list[tuple[str, Figures]]:
    """Figures of a comparison by class, most images first, then of all others."""
    named = [(place, figures) for place, figures in counts.items() if place != OTHERS]
    ordered = sorted(named, key=lambda item: -item[1].images)
    rows = [(classes[place] if place < len(classes) else f"class {place}", figures) for place, figures in ordered]
    if (others := counts.get(OTHERS)) is not None and named:
        rows.append(("classes with few images", others))
    return rows


def stages(stage: str, *, finished: bool) -> list[tuple[str, str]]:
    """The phases of a run, each done, now, or ahead."""
    at = STAGES.index(stage) if stage in STAGES else -1
    return [
        (name, "done" if i < at or (finished and i == at) else "now" if i == at else "ahead")
        for i, name in enumerate(STAGES)
    ]
