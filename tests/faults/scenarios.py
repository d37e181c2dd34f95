"""What is done to a service on the bench. Every scenario ends with requests completed and everything checked."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from threading import Timer

from sqlmodel import select

from service.models import registry
from service.store.engine import reading
from service.store.fail_points import FAIL_POINTS, OUTSIDE_RUNS, SHADOWING
from service.store.tables import ShadowComparison, ShadowPart
from tests.faults.bench import Bench
from tests.faults.disk import SmallDisk
from tests.faults.watch import Person, found_in
from tests.postgres import PostgresServer
from tests.waiting import join

FULL_BEFORE = {  # what is written next, by the point at which the disk is full
    "unlearning.references": "reference bank",
    "unlearning.attempt": "weights of a candidate",
    "deploying.row": "weights for the registry",
    "auditing.reported": "verdict",
    "purging.start": "the state of a purge",
    "purging.image_destroyed": "table without the person",
    "purging.images": "banks without the person",
    "purging.columns": "block list without the person",
    "purging.blocks": "mark of a destroyed version",
    "purging.candidates": "what the purge destroyed",
    "purging.end": "certificate",
    "completing.signed": "completed request",
}


def every_point(
    bench: Bench, points: Iterable[str] = FAIL_POINTS, *, after_kill: Callable[[str], None] = lambda point: None
) -> None:
    """One request whose worker dies at every fail point, one after another."""
    request_ids = bench.file(bench.next_person())
    for point in points:
        if bench.die_at(point, request_ids):
            after_kill(point)
        else:
            bench.tally.violations.append(f"the run never passed {point}")
    bench.finish(request_ids)
    bench.stop_worker()


def both_at_points(bench: Bench, points: Iterable[str]) -> None:
    """One request whose worker dies at the points, and a serving process with it each time."""
    every_point(bench, points, after_kill=lambda point: bench.kill_api("API worker, with the worker"))


def while_shadowed(bench: Bench, n_api: int = 0) -> None:
    """The worker dies around a comparison and at every point of it, each time with so many serving processes."""
    bench.wait_serving()
    points = ("deploying.staged", *SHADOWING, "deploying.pointer")
    kill = f"{n_api} API workers, with the worker at a comparison"
    every_point(bench, points, after_kill=lambda point: bench.kill_api(kill, n=n_api))
    with reading(bench.context.engine) as s:
        is_open = any(row.ended_at is None for row in s.exec(select(ShadowComparison)))
        if is_open or s.exec(select(ShadowPart)).first() is not None:
            bench.tally.violations.append("a comparison or a process's counts are left after the run")


def random_times(bench: Bench, n_kills: int, longest_seconds: float) -> None:
    """Requests one after another; the worker dies at times drawn evenly until so many kills are done."""
    done = 0
    while done < n_kills:
        request_ids = bench.file(bench.next_person())
        while done < n_kills and not all(map(bench.ended, request_ids)):
            bench.start_worker()
            time.sleep(bench.rng.uniform(0.0, longest_seconds))
            bench.kill_worker("worker at a random time")
            done += 1
        bench.finish(request_ids)
        bench.stop_worker()


def after_the_receipt(bench: Bench, n_requests: int, n_api: int = 1) -> None:
    """Serving processes die right after the 202, before a worker has looked; with `n_api` 2 nobody serves."""
    kill = f"API worker{'s' if n_api > 1 else ''} right after the 202"
    for _ in range(n_requests):
        bench.wait_serving()
        request_ids = bench.file(bench.next_person(), after=lambda: bench.kill_api(kill, n=n_api))
        bench.finish(request_ids)
    bench.stop_worker()


def during_the_filing(bench: Bench, n_times: int, n_calls: int = 5) -> None:
    """All serving processes die among some calls, or in one; what got no answer is repeated under its key."""
    for _ in range(n_times):
        bench.wait_serving()
        delay_seconds = bench.rng.uniform(0.0, 0.04)  # five calls take about that
        place = "API workers while requests are filed"
        killer = Timer(delay_seconds, bench.kill_api, args=(place, bench.settings.api_workers))
        killer.start()
        request_ids = [request_id for _ in range(n_calls) for request_id in bench.file(bench.next_person())]
        join(killer)
        bench.finish(request_ids)
    bench.stop_worker()


def database_restarts(bench: Bench, server: PostgresServer, points: Iterable[str]) -> None:
    """PostgreSQL ends like a crash, or politely, while a worker is at work; and while one is dead at a point."""
    for number, point in enumerate(points):
        request_ids = bench.file(bench.next_person())
        if not bench.die_at(point, request_ids):
            bench.tally.violations.append(f"the run never passed {point}")
        server.restart("immediate" if number % 2 else "fast")
        bench.tally.kills["PostgreSQL, the worker dead"] += 1
        bench.start_worker()
        time.sleep(bench.rng.uniform(0.5, 2.0))
        server.restart("fast" if number % 2 else "immediate")
        bench.tally.kills["PostgreSQL, the worker at work"] += 1
        bench.complete(request_ids)
        bench.stop_worker()


def full_disk(
    bench: Bench, disk: SmallDisk, point: str, seconds: float = 6.0, *, most_approvals: int | None = None
) -> None:
    """The disk is full when a worker goes on from the point, and has room again some seconds later."""
    request_ids = bench.file(bench.next_person())
    if not bench.die_at(point, request_ids):
        bench.tally.violations.append(f"the run never passed {point}")
    disk.fill()
    bench.start_worker()
    bench.pass_time(seconds, lambda: any(bench.request(each)["state"] == "needs_attention" for each in request_ids))
    disk.clear()
    bench.tally.kills[f"disk full: {FULL_BEFORE[point]}"] += 1
    bench.complete(request_ids, most_approvals=most_approvals)
    bench.stop_worker()


def clock_set_back(bench: Bench, seconds: float, points: Iterable[str]) -> None:
    """The worker's wall clock jumps back between two of its lives, and while it is at work."""
    for point in points:
        bench.clock.write_text("0")
        request_ids = bench.file(bench.next_person())
        if not bench.die_at(point, request_ids):
            bench.tally.violations.append(f"the run never passed {point}")
        bench.clock.write_text(str(-seconds))
        bench.start_worker()
        time.sleep(bench.rng.uniform(0.5, 1.5))
        bench.clock.write_text(str(-2 * seconds))
        bench.tally.kills["clock set back twice"] += 1
        bench.finish(request_ids)
        bench.stop_worker()
    bench.clock.unlink()


def clock_jumps(bench: Bench, seconds: float, point: str) -> None:
    """The worker's clock jumps while it holds the lease and works: there, back beyond where it was, and home again."""
    bench.clock.write_text("0")
    request_ids = bench.file(bench.next_person())
    if not bench.die_at(point, request_ids):
        bench.tally.violations.append(f"the run never passed {point}")
    worker = bench.start_worker()
    for shift in (seconds, -seconds, 0.0):
        bench.let_work(request_ids, bench.rng.uniform(0.2, 0.8))
        bench.clock.write_text(str(shift))
        bench.tally.kills[f"clock jumps {'back' if shift < 0 else 'forward'} under the lease"] += 1
    if bench.has_ended(worker):
        bench.tally.violations.append("a worker ended because its clock jumped")
    bench.finish(request_ids)
    bench.stop_worker()
    bench.clock.unlink()


def left_behind(bench: Bench, points: Iterable[str] = OUTSIDE_RUNS) -> None:
    """A command dies at a point; then somebody it learned from is erased, and nothing of what it left is there."""
    commands = {
        "training": ("train", "--seed", "5"), "rotation": ("keys", "rotate-signing"),
        "building": ("references", "refresh", "--all"),
    }  # fmt: skip
    for point in points:
        command = bench.start_command(*commands[point.partition(".")[0]], fail_at=point)
        bench.until(partial(bench.has_ended, command), f"the command to die at {point}")
        if bench.zygote.status(command) != -signal.SIGKILL:
            bench.tally.violations.append(f"the command never passed {point}")
        bench.tally.kills[f"command at {point}"] += 1
        left = Person("", tuple(_left_by_commands(bench)))
        bench.complete(bench.file(bench.next_person()), most_approvals=0)
        bench.stop_worker()
        bench.tally.violations += [
            f"what a command left at {point} in {name}"
            for name in found_in(bench.places(), [left] if left.needles else [])
        ]


def _left_by_commands(bench: Bench) -> list[bytes]:
    """Pieces of weights and private keys that are not in use."""
    settings = bench.settings
    weights = [*settings.home.glob(".training-*/*.safetensors"), *settings.models_folder.glob("*.safetensors")]
    active = {version.digest for version in registry.versions(bench.context) if version.state == "active"}
    keys = settings.keys_folder.glob(".signing.pem.*")
    idle = [path for path in keys if not path.samefile(settings.keys_folder / "signing.pem")]
    return [
        *(path.read_bytes()[-80:] for path in weights if path.stem not in active),
        *(path.read_bytes().splitlines()[-2][24:] for path in idle),  # what does not stand in every key
    ]
