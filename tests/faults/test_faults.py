"""A slice of `make faults`, which has the whole; what it shows is in `watch.py`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from service.store.fail_points import FAIL_POINTS
from tests.faults import commands, edits, scenarios, stores, volumes
from tests.faults.bench import Bench, memory_folder
from tests.faults.disk import NoDiskError, small_disk
from tests.object_store import faulty_bucket

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="faults-", dir=memory_folder(), ignore_cleanup_errors=True) as name:
        yield Path(name)


def test_processes_die_and_nothing_promised_breaks(folder: Path) -> None:
    """Every eighth point in one run, a serving process with the worker and one after the receipt."""
    with Bench.running(folder, n_subjects=40, seed=3) as bench:
        scenarios.both_at_points(bench, ("deploying.staged",))
        scenarios.after_the_receipt(bench, 1)
        scenarios.every_point(bench, FAIL_POINTS[::8])
        bench.clock.write_text("0")
        scenarios.clock_set_back(bench, 3600.0, ("deploying.staged",))
        scenarios.left_behind(bench, ("training.saved", "rotation.replaced"))
        assert bench.conclude().violations == []
        assert bench.tally.n_kills >= 12


def test_a_full_disk_costs_time_and_nothing_else(folder: Path) -> None:
    try:
        with small_disk(folder / "disk") as disk, Bench.running(disk.folder, n_subjects=40, seed=4) as bench:
            scenarios.full_disk(bench, disk, "purging.end", seconds=3.0)
            assert bench.conclude().violations == []
    except NoDiskError as error:
        pytest.skip(str(error))


def test_storage_that_goes_and_comes_back_leaves_every_certificate_true(folder: Path) -> None:
    """Data folder and object store, before a run and in its purge; an edited policy, a study."""
    with faulty_bucket() as store:
        changes = {"storage_url": f"{store.url}/service", "api_workers": 1, "lease_seconds": 4.0}
        with Bench.running(folder, n_subjects=40, seed=5, attempts=2, **changes) as bench:
            stores.watch_store(bench, store)
            bench.carry_on(volumes.volume_gone, bench, "", "empty")
            bench.carry_on(volumes.volume_gone, bench, "purging.image_destroyed", "absent")
            bench.carry_on(stores.store_fails, bench, store, "purging.start", "refuses deletion")
            bench.carry_on(edits.policy_edited, bench, "unlearning.references_built")
            bench.carry_on(commands.study_beside_purge, bench, "evaluate", "purging.start")
            assert bench.conclude().violations == []
