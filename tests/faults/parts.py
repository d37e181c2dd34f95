"""The parts of `make faults`: each is one service, and what is done to it one after another."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import TypeVar

from service.store.fail_points import BACKUPS, FAIL_POINTS, OUTSIDE_RUNS, RESTORES
from tests.faults import commands, copies, edits, restores, scenarios, stores, volumes, workers
from tests.faults.bench import Bench, Tally
from tests.faults.disk import small_disk
from tests.object_store import FaultyStore, faulty_bucket
from tests.postgres import PostgresServer

T = TypeVar("T")

USED_UP = 30.0  # seconds in which a step that is tried twice has asked for help


def points(folder: Path, seed: int, share: float) -> Tally:
    """The worker at every point, twice, and at some of them a serving process with it."""
    rng = random.Random(seed)
    with Bench.running(folder, n_subjects=40, seed=seed) as bench:
        for _ in range(max(1, round(2 * share))):
            scenarios.every_point(bench)
        for _ in range(max(1, round(2 * share))):
            some = sorted(rng.sample(FAIL_POINTS, max(3, round(12 * share))), key=FAIL_POINTS.index)
            scenarios.both_at_points(bench, some)
        return bench.conclude()


def random_times(folder: Path, seed: int, share: float) -> Tally:
    """The worker at times drawn evenly."""
    with Bench.running(folder, n_subjects=100, seed=seed) as bench:
        scenarios.random_times(bench, round(60 * share), longest_seconds=3.0)
        return bench.conclude()


def serving(folder: Path, seed: int, share: float) -> Tally:
    """Serving processes right after the receipt, one and all of them, and while requests are filed."""
    with Bench.running(folder, n_subjects=60, seed=seed) as bench:
        scenarios.after_the_receipt(bench, max(1, round(4 * share)))
        scenarios.after_the_receipt(bench, max(1, round(2 * share)), n_api=2)
        scenarios.during_the_filing(bench, max(1, round(5 * share)))
        return bench.conclude()


def clocks(folder: Path, seed: int, share: float) -> Tally:
    """The worker's clock an hour back, and two, between its lives; and there and back while it holds the lease."""
    some = ("unlearning.references", "deploying.staged", "purging.marked", "completing.signed")
    with Bench.running(folder, n_subjects=40, seed=seed) as bench:
        scenarios.clock_set_back(bench, 3600.0, some[: max(1, round(len(some) * share))])
        for point in some[: max(1, round(len(some) * share))]:
            bench.carry_on(scenarios.clock_jumps, bench, 3600.0, point)
        return bench.conclude()


def full_disks(folder: Path, seed: int, share: float) -> Tally:
    """No room for weights, bank, verdict, certificate, and for what a purge writes."""
    with small_disk(folder / "disk") as disk, Bench.running(disk.folder, n_subjects=40, seed=seed) as bench:
        for point in list(scenarios.FULL_BEFORE)[: max(1, round(len(scenarios.FULL_BEFORE) * share))]:
            scenarios.full_disk(bench, disk, point)
        return bench.conclude()


def databases(folder: Path, seed: int, share: float) -> Tally:
    """PostgreSQL: restarts in the middle, and the worker at some points."""
    some = ("unlearning.references", "auditing.signed", "deploying.pointer", "purging.columns", "completed")
    with PostgresServer.started() as server:
        urls = {"database_url": server.create_database(), "workflow_database_url": server.create_database()}
        with Bench.running(folder, n_subjects=40, seed=seed, **urls) as bench:
            scenarios.every_point(bench, FAIL_POINTS[:: max(1, round(4 / share))])
            scenarios.database_restarts(bench, server, some[: max(1, round(len(some) * share))])
            return bench.conclude()


def lost_volumes(folder: Path, seed: int, share: float) -> Tally:
    """The data folder away, empty or without its images: before a run, in it, in its purge."""
    with Bench.running(folder, n_subjects=80, seed=seed) as bench:
        for point, how in _some(product(volumes.POINTS, volumes.LOSSES), 36 * share):
            bench.carry_on(volumes.volume_gone, bench, point, how)
        for number in range(max(1, round(4 * share))):
            bench.carry_on(volumes.volume_gone_at_work, bench, bench.rng.uniform(0.2, 2.5), volumes.LOSSES[number % 2])
        return bench.conclude()


def object_stores(folder: Path, seed: int, share: float) -> Tally:
    """The object store down, empty, slow, read-only, or unwilling to delete."""
    with faulty_bucket() as store:
        changes = {"storage_url": f"{store.url}/service"}
        with Bench.running(folder, n_subjects=60, seed=seed, **changes) as bench:
            stores.watch_store(bench, store)
            for point, fault in _some(product(stores.POINTS, FaultyStore.FAULTS), 30 * share):
                bench.carry_on(stores.store_fails, bench, store, point, fault)
            return bench.conclude()


def used_up_retries(folder: Path, seed: int, share: float) -> Tally:
    """The storage refuses until a step of the purge has used up its retries; then a human approves over HTTP."""
    points = [point for point in scenarios.FULL_BEFORE if point.startswith(("purging", "completing"))]
    with faulty_bucket() as store, small_disk(folder / "disk") as disk:
        changes = {"storage_url": f"{store.url}/service"}
        with Bench.running(disk.folder, n_subjects=60, seed=seed, attempts=2, **changes) as bench:
            stores.watch_store(bench, store)
            for point, fault in _some(
                product(("purging.start", "purging.marked"), ("down", "read-only", "refuses deletion")), 6 * share
            ):
                bench.carry_on(stores.store_fails, bench, store, point, fault, USED_UP)
            for point in _some(points, len(points) * share):
                bench.carry_on(scenarios.full_disk, bench, disk, point, USED_UP, most_approvals=1)
            for point, how in _some(product(volumes.POINTS[5:], volumes.LOSSES[:2]), 12 * share):
                bench.carry_on(volumes.volume_gone, bench, point, how, USED_UP)
            return bench.conclude()


def second_workers(folder: Path, seed: int, share: float) -> Tally:
    """A second worker beside the first, and in its place."""
    with Bench.running(folder, n_subjects=60, seed=seed, lease_seconds=4.0) as bench:
        for place, clock in _some(product(workers.PLACES, (0.0, 3600.0, -3600.0)), 9 * share):
            bench.carry_on(workers.second_refuses, bench, place, clock)
        for point in _some(workers.POINTS, 4 * share):
            bench.carry_on(workers.second_takes_over, bench, point)
        return bench.conclude()


def restored_databases(folder: Path, seed: int, share: float) -> Tally:
    """Yesterday's databases put back after an erasure."""
    with Bench.running(folder, n_subjects=60, seed=seed, api_workers=1) as bench:
        for point, names in _some(product(restores.POINTS, restores.FILES), 15 * share):
            bench.carry_on(restores.yesterday_put_back, bench, point, names)
        return bench.conclude()


def edited(folder: Path, seed: int, share: float) -> Tally:
    """Policy, recipe and data changed in the middle of a run."""
    with Bench.running(folder, n_subjects=60, seed=seed, attempts=2) as bench:
        for point in _some(edits.POLICY_POINTS, 4 * share):
            bench.carry_on(edits.policy_edited, bench, point)
        for point in _some(("rerun.start", "deploying.end", "completing.signed"), 3 * share):
            bench.carry_on(edits.recipe_edited, bench, point)
        for point in _some(edits.DATA_POINTS, 4 * share):
            bench.carry_on(edits.image_added, bench, point)
        return bench.conclude()


def killed_commands(folder: Path, seed: int, share: float) -> Tally:
    """Training, key rotation and building at every point, packing at random times, each before somebody is erased."""
    with Bench.running(folder, n_subjects=40, seed=seed) as bench:
        bench.carry_on(scenarios.left_behind, bench, _some(OUTSIDE_RUNS, len(OUTSIDE_RUNS) * share))
        bench.carry_on(commands.packing_killed, bench, max(1, round(8 * share)))
        return bench.conclude()


def studies(folder: Path, seed: int, share: float) -> Tally:
    """Studies beside a purge."""
    with Bench.running(folder, n_subjects=40, seed=seed) as bench:
        for what, point in _some(product(commands.STUDIES, commands.POINTS), 8 * share):
            bench.carry_on(commands.study_beside_purge, bench, what, point)
        return bench.conclude()


def backups(folder: Path, seed: int, share: float) -> Tally:
    """Backups and restores at every point, around an erasure."""
    with Bench.running(folder, n_subjects=40, seed=seed, api_workers=1) as bench:
        for point in _some(BACKUPS, len(BACKUPS) * share):
            bench.carry_on(copies.backup_killed, bench, point)
        for point in _some(RESTORES, len(RESTORES) * share):
            bench.carry_on(copies.restore_killed, bench, point)
        return bench.conclude()


def shadows(folder: Path, seed: int, share: float) -> Tally:
    """A candidate in the shadow: the worker around it and at every point of it, and a serving process with it."""
    with Bench.running(folder, n_subjects=40, seed=seed, shadow_seconds=3.0, shadow_share=0.5) as bench:
        for _ in range(max(1, round(2 * share))):
            bench.carry_on(scenarios.while_shadowed, bench)
            bench.carry_on(scenarios.while_shadowed, bench, n_api=1)
            bench.carry_on(scenarios.while_shadowed, bench, n_api=2)
        return bench.conclude()


def _some(these: Iterable[T], n: float) -> list[T]:
    """So many of them, at least one, evenly drawn from all."""
    everything = list(these)
    wanted = min(len(everything), max(1, round(n)))
    return [everything[i * len(everything) // wanted] for i in range(wanted)]


PARTS: dict[str, Callable[[Path, int, float], Tally]] = {
    "points": points, "random": random_times, "serving": serving, "clock": clocks, "disk": full_disks,
    "postgres": databases, "volume": lost_volumes, "store": object_stores, "retries": used_up_retries,
    "workers": second_workers, "restored": restored_databases, "edited": edited, "commands": killed_commands,
    "studies": studies, "backups": backups, "shadow": shadows,
}  # fmt: skip
