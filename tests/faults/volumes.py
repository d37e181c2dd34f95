"""The data folder gone for a while: a volume that is not mounted, or mounted and empty, or without its images.

Meanwhile no request may be completed: whether images are gone for good or only out of sight cannot be known, so nobody
may be told that there was nothing. Afterwards all is as if nothing had happened, or an operator approves once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.faults.bench import Bench

LOSSES: Final = ("absent", "empty", "without its images")
POINTS: Final = (
    "",  # before a worker has looked
    "unlearning.planned",
    "unlearning.references_built",
    "auditing.stored",
    "deploying.end",
    "purging.start",
    "purging.overwritten",
    "purging.image_destroyed",
    "purging.old_table_linked",
    "purging.images",
    "purging.weights",
    "purging.recorded",
)

DESTROYED: Final = ("purging.recorded",)  # what was destroyed is written down: completing needs no folder


@contextmanager
def lost(bench: Bench, how: str) -> Iterator[None]:
    """The volume of the data lost while the block runs; what was written in its place meanwhile is searched, too."""
    data, away = bench.settings.data_folder, bench.settings.home.parent / "away"
    away.mkdir(exist_ok=True)
    if how == "without its images":
        _move_images(data, away)
    else:
        data.rename(away / "data")
    if how == "empty":
        data.mkdir()
    try:
        yield
    finally:
        if how == "without its images":
            _move_images(away, data)
        else:
            if data.exists():
                data.rename(bench.settings.home.parent / "tmp" / f"left-{bench.tally.n_kills}")
            (away / "data").rename(data)


def _move_images(source: Path, target: Path) -> None:
    """Every file but the table and what begins with a dot."""
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and name.as_posix() != "metadata.csv" and not any(part[0] == "." for part in name.parts):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            path.rename(target / name)


def volume_gone(bench: Bench, point: str, how: str, seconds: float = 4.0) -> None:
    """The volume is gone when a worker goes on from the point, until some seconds later or until help is asked for."""
    request_ids = bench.file(bench.next_person())
    if point and not bench.die_at(point, request_ids):
        bench.tally.violations.append(f"the run never passed {point}")
    with lost(bench, how):
        bench.start_worker()
        if point in DESTROYED:
            bench.let_work(request_ids, seconds)
        else:
            bench.nothing_ends(request_ids, f"the data folder was {how}", seconds)
        bench.stop_worker()
    bench.tally.kills[f"data folder {how}"] += 1
    bench.complete(request_ids, most_approvals=1)
    bench.stop_worker()


def volume_gone_at_work(bench: Bench, seconds: float, how: str) -> None:
    """The volume goes while the worker is at work, at no point in particular, and comes back under it."""
    request_ids = bench.file(bench.next_person())
    bench.start_worker()
    bench.let_work(request_ids, seconds)
    if not all(map(bench.ended, request_ids)):
        with lost(bench, how):
            bench.nothing_ends(request_ids, f"the data folder was {how}")
        bench.tally.kills[f"data folder {how}, the worker at work"] += 1
    bench.complete(request_ids, most_approvals=1)
    bench.stop_worker()
