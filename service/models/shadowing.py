"""Shadowing: a certified candidate answers a share of the live predictions too, unseen by callers, before its commit.

The worker opens a *comparison* for its run once every serving process has staged the candidate. While it is open, the
processes (`service.serving.shadow`) compute some of the batches that they just answered a second time, count what the
candidate would change, and write their counts here now and then. The worker ends it after `EXPUNGE_SHADOW_SECONDS`, or
once `EXPUNGE_SHADOW_IMAGES` were compared, adds the counts up and holds them against the policy's bar.

Only counts are kept, by class: no image, no answer, nothing of a request or of who sent it. Counts of few images could
still hint at somebody whose answers a class consists of, so classes with fewer than `FEWEST_OF_CLASS` images are put
together, and of fewer images in all only their number is kept. What is compared are answers. That tells what callers
will notice; whether somebody was forgotten is for the audit to say.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

import structlog
from sqlmodel import Session, col, select

from service.context import LINE, Context
from service.errors import RunStoppedError
from service.models.barrier import look
from service.store.engine import reading, session
from service.store.tables import Deployment, ShadowComparison, ShadowPart

log = structlog.get_logger()

MOVED: Final = 0.05  # a change of a probability that the arithmetic alone, in batches of another size, does not make
BOUNDS: Final = (0.01, MOVED, 0.1, 0.2, 0.5, 1.0)
FEWEST_OF_CLASS: Final = 20
FEWEST_FOR_BAR: Final = 100
OTHERS: Final = -1  # place of classes with fewer, together
_LOOK_SECONDS = 0.5
_SILENT_SECONDS = 300.0


@dataclass(frozen=True)
class Figures:
    """What the candidate would change in some answers.

    Attributes:
        images: answered by both.
        labels_changed: of these, how many the candidate gives another label.
        failed: of these, how many it could not answer.
        moved: sum of the changes, without sign, of the probability of the label that was answered.
        histogram: images by that change, each bucket up to its bound in `BOUNDS`; without those that failed.
    """

    images: int = 0
    labels_changed: int = 0
    failed: int = 0
    moved: float = 0.0
    histogram: tuple[int, ...] = (0,) * len(BOUNDS)

    @classmethod
    def of(cls, *, label_changed: bool, moved: float) -> Figures:
        """Of one image that the candidate answered."""
        bucket = min(bisect_left(BOUNDS, moved), len(BOUNDS) - 1)
        return cls(1, int(label_changed), 0, moved, tuple(int(place == bucket) for place in range(len(BOUNDS))))

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.images + other.images,
            self.labels_changed + other.labels_changed,
            self.failed + other.failed,
            self.moved + other.moved,
            tuple(one + another for one, another in zip(self.histogram, other.histogram, strict=True)),
        )

    @property
    def confidence_changed(self) -> int:
        """Images whose answered label's probability changed by more than `MOVED`."""
        return sum(self.histogram[BOUNDS.index(MOVED) + 1 :])

    @property
    def share_changed(self) -> float:
        """Share of images with another label or, which a caller would mind no less, without an answer."""
        return (self.labels_changed + self.failed) / self.images if self.images else 0.0

    @property
    def mean_moved(self) -> float:
        """Mean change, without sign, of the answered label's probability, over the images that got one."""
        answered = self.images - self.failed
        return self.moved / answered if answered else 0.0

    @property
    def is_told(self) -> bool:
        """Whether there is more than a number of images."""
        return self.images >= FEWEST_OF_CLASS


Counts = Mapping[int, Figures]
"""By place of the class that was answered, in the manifest of the model in service."""


def added_up(counts: Iterable[Figures]) -> Figures:
    """All together."""
    return sum(counts, Figures())


def to_json(counts: Counts) -> dict[str, Any]:
    """Plain JSON values."""
    return {str(place): asdict(figures) for place, figures in counts.items()}


def from_json(values: Mapping[str, Any]) -> dict[int, Figures]:
    """What `to_json` gave."""
    return {
        int(place): Figures(**{**figures, "histogram": tuple(figures["histogram"])})
        for place, figures in values.items()
    }


def coarse(counts: Counts) -> dict[int, Figures]:
    """The counts with small classes together under `OTHERS`, which is no small one either.

    A class that is large enough by itself joins them if they are too few without it: the total would give them away.
    """
    kept = dict(sorted(counts.items(), key=lambda item: item[1].images))
    others = Figures()
    for place, figures in list(kept.items()):
        if figures.images < FEWEST_OF_CLASS or 0 < others.images < FEWEST_OF_CLASS:
            others += kept.pop(place)
    if others.images and not others.is_told:
        others = Figures(images=others.images)  # all there is
    return {**kept, **({OTHERS: others} if others.images else {})}


@dataclass(frozen=True)
class Open:
    """A comparison that serving processes take part in."""

    run_id: str
    share: float


def find_open(context: Context, digest: str) -> Open | None:
    """The comparison that is under way for a staged version."""
    with reading(context.engine) as s:
        query = select(ShadowComparison).where(
            ShadowComparison.digest == digest, col(ShadowComparison.ended_at).is_(None)
        )
        row = s.exec(query).first()
    return Open(row.run_id, row.share) if row is not None else None


def write_part(context: Context, run_id: str, boot_id: str, generation: int, counts: Counts) -> None:
    """Write what a serving process counted so far, unless the comparison ended."""
    with session(context.engine) as s:
        row = s.get(ShadowComparison, run_id, with_for_update=True)  # the end waits for this, or this sees the end
        if row is None or row.ended_at is not None:
            return
        s.merge(ShadowPart(run_id=run_id, boot_id=boot_id, generation=generation, counts=to_json(counts)))
        s.commit()


@dataclass(frozen=True)
class Comparison:
    """A comparison that ended.

    Attributes:
        share: of the batches that the candidate answered too.
        counts: as `coarse` gives them.
    """

    run_id: str
    share: float
    began_at: datetime
    ended_at: datetime
    counts: Counts

    @property
    def total(self) -> Figures:
        """Over all classes."""
        return added_up(self.counts.values())

    def sentence(self) -> str:
        """What came of it; names no class."""
        total = self.total
        if not total.images:
            return "No predictions came to compare the candidate's answers with."
        if not total.is_told:
            return f"The candidate answered {total.images} live predictions too, too few to say anything of them."
        failed = f" It could not answer {total.failed}." if total.failed else ""
        return (
            f"The candidate answered {total.images} live predictions too: {total.labels_changed / total.images:.1%} "
            f"would have another label, and the probability of {total.confidence_changed / total.images:.1%} would "
            f"change by more than {MOVED:g}.{failed}"
        )

    def summary(self) -> dict[str, Any]:
        """Figures over all classes for a certificate: a class may be a person."""
        total = self.total
        told = {
            "labels_changed": total.labels_changed, "failed": total.failed,
            "confidence_changed": total.confidence_changed, "confidence_changed_above": MOVED,
        }  # fmt: skip
        return {"images": total.images, "share": self.share, **(told if total.is_told else {})}


def find(s: Session, run_id: str) -> Comparison | None:
    """The comparison of a run once it ended."""
    return _ended(s.get(ShadowComparison, run_id))


def newest(s: Session) -> Comparison | None:
    """The comparison that ended last."""
    ended_at = col(ShadowComparison.ended_at)
    return _ended(s.exec(select(ShadowComparison).where(ended_at.is_not(None)).order_by(ended_at.desc())).first())


def compare(
    context: Context,
    run_id: str,
    digest: str,
    *,
    changed_max: Callable[[], float] = lambda: 0.0,
    note: Callable[[str], object] = lambda _: None,
    sleep: Callable[[float], None] = time.sleep,
    steady: Callable[[], float] = time.monotonic,
) -> None:
    """Let a staged candidate answer live predictions too for a while, and judge what it would change.

    To be called between staging and commit, also again after a kill: it goes on where it was, for what is left of its
    time, and one that ended is judged by what was counted. Nothing is done once the candidate is active.

    Args:
        changed_max: gives the policy's bar on `Figures.share_changed`; 0: none.
        note: is told how far it is.

    Raises:
        RunStoppedError: more than the bar allows would change.
    """
    with reading(context.engine) as s:
        pointer, row = s.get(Deployment, LINE), s.get(ShadowComparison, run_id)
    if (pointer is not None and pointer.committed_digest == digest) or (
        row is None and not context.settings.shadow_seconds
    ):
        return
    bar = changed_max()
    if row is None:
        row = _begin(context, run_id, digest)
        context.reached("shadowing.begun")
    found = _ended(row)
    if found is None:
        _wait(context, row, note, sleep, steady)
        found = _end(context, run_id)
        context.reached("shadowing.ended")
        log.info("shadow.compared", run_id=run_id, **found.summary())
        if bar and found.total.images < FEWEST_FOR_BAR:
            log.warning("shadow.not_judged", run_id=run_id, n_images=found.total.images, n_needed=FEWEST_FOR_BAR)
    total = found.total
    if bar and total.images >= FEWEST_FOR_BAR and total.share_changed > bar:
        raise RunStoppedError(
            f"Expected the candidate to change the label of at most {bar:.1%} of live predictions "
            f"(shadow_changed_max of the policy). {found.sentence()} Nothing was deployed. See on the run's page which "
            "classes change; approve to have another candidate made and compared, after raising the bar if these "
            "changes are what is to be expected."
        )


def _begin(context: Context, run_id: str, digest: str) -> ShadowComparison:
    row = ShadowComparison(
        run_id=run_id, digest=digest, share=context.settings.shadow_share, began_at=context.now()
    )  # fmt: skip
    with session(context.engine) as s:
        for left in s.exec(select(ShadowComparison).where(col(ShadowComparison.ended_at).is_(None))):
            s.delete(left)  # of a run that was abandoned in the middle of it; a line has one run at a time
        for part in s.exec(select(ShadowPart)):
            s.delete(part)
        s.add(row)
        s.commit()
        s.refresh(row)
    return row


def _wait(
    context: Context,
    row: ShadowComparison,
    note: Callable[[str], object],
    sleep: Callable[[float], None],
    steady: Callable[[], float],
) -> None:
    """Until the time is over, enough was seen, or nobody serves."""
    settings, told, told_at = context.settings, -1, 0.0
    gone = (context.now() - row.began_at).total_seconds()
    deadline = steady() + max(0.0, settings.shadow_seconds - max(0.0, gone))
    while steady() < deadline and look(context).alive():
        with reading(context.engine) as s:
            n_images = added_up(_parts(s, row.run_id)).images
        if n_images >= settings.shadow_images:
            return
        if n_images != told or steady() >= told_at + _SILENT_SECONDS:  # without news the run would seem to hang
            note(f"comparing answers to live predictions {n_images}/{settings.shadow_images}")
            told, told_at = n_images, steady()
        sleep(_LOOK_SECONDS)


def _parts(s: Session, run_id: str) -> list[Figures]:
    rows = s.exec(select(ShadowPart).where(ShadowPart.run_id == run_id))
    return [figures for row in rows for figures in from_json(row.counts).values()]


def _end(context: Context, run_id: str) -> Comparison:
    """Add up what the processes counted, for good, and remove their own counts."""
    with session(context.engine) as s:
        row = s.get_one(ShadowComparison, run_id, with_for_update=True)
        counts: dict[int, Figures] = {}
        for part in s.exec(select(ShadowPart).where(ShadowPart.run_id == run_id)):
            for place, figures in from_json(part.counts).items():
                counts[place] = counts.get(place, Figures()) + figures
            s.delete(part)
        found = Comparison(run_id, row.share, row.began_at, context.now(), coarse(counts))
        row.counts, row.ended_at = to_json(found.counts), found.ended_at
        s.add(row)
        s.commit()
    return found


def _ended(row: ShadowComparison | None) -> Comparison | None:
    if row is None or row.ended_at is None:
        return None
    return Comparison(row.run_id, row.share, row.began_at, row.ended_at, from_json(row.counts))
