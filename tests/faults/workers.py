"""A second worker: on the same home, on another home of the same database, on this machine and on another.

There is one worker a line. A second one refuses to start while the first lives, whatever its clock says; when the first
is dead it may take over, and without the person's data it may finish nothing.
"""

from __future__ import annotations

import shutil
from typing import Final

from service.launch import environment, free_ports
from service.settings import Settings
from tests.faults.bench import Bench

PLACES: Final = ("same home", "other home", "other machine")
POINTS: Final = ("unlearning.references_built", "deploying.end", "purging.image_destroyed", "purging.weights")
SECONDS: Final = 60.0  # in which a second worker must have said no


def other_home(bench: Bench) -> Settings:
    """Another home with the keys and the databases of the first: no data, no weights, no banks."""
    settings = bench.settings
    home = settings.home.parent / "other"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    shutil.copytree(settings.keys_folder, home / "keys")
    changes = {
        "home": home, "database_url": settings.effective_database_url, "console_port": free_ports(1)[0],
        "workflow_database_url": settings.effective_workflow_database_url,
    }  # fmt: skip
    return Settings.model_validate({**settings.model_dump(), **changes})


def start_second(bench: Bench, place: str, clock_seconds: float = 0.0) -> int:
    """Start a second worker somewhere; gives its process id."""
    settings = bench.settings if place == "same home" else other_home(bench)
    clock = bench.settings.home.parent / "other-clock"
    clock.write_text(str(clock_seconds))
    given = {**environment(settings), "FAULTS_CLOCK": str(clock)}
    given.pop("EXPUNGE_FAIL_AT", None)
    if place == "other machine":
        given["FAULTS_HOST"] = "another"
    return bench.zygote.start(given, bench.settings.home.parent / "second-worker.log")


def second_refuses(bench: Bench, place: str, clock_seconds: float = 0.0) -> None:
    """While the first worker works on a request a second one starts: it says no, and the first goes on."""
    request_ids = bench.file(bench.next_person())
    first = bench.start_worker()
    bench.let_work(request_ids, bench.rng.uniform(0.3, 1.5))
    second = start_second(bench, place, clock_seconds)
    bench.tally.kills[f"second worker, {place}"] += 1
    name = f"on the {place}" + (f" with its clock {clock_seconds:+.0f} s off" if clock_seconds else "")
    if (status := bench.zygote.wait(second, SECONDS)) in (None, 0):
        bench.tally.violations.append(f"a second worker {name} went to work beside the first")
        bench.zygote.stop(second)
    if bench.zygote.status(first) is not None:
        bench.tally.violations.append(f"the first worker ended when a second one {name} started (its end: {status})")
    bench.complete(request_ids, most_approvals=0)
    bench.stop_worker()


def second_takes_over(bench: Bench, point: str, place: str = "other home") -> None:
    """The first worker is dead at the point; one on a home without the data goes on, and then the first again."""
    request_ids = bench.file(bench.next_person())
    if not bench.die_at(point, request_ids):
        bench.tally.violations.append(f"the run never passed {point}")
    second = start_second(bench, place)
    bench.tally.kills[f"second worker takes over, {place}"] += 1
    bench.nothing_ends(request_ids, "a worker without the data was at work", supervised=False)
    bench.zygote.stop(second)
    bench.complete(request_ids, most_approvals=1)
    bench.stop_worker()
