"""How many processes train: bounded by cores, a container's memory, and what the operator says."""

from __future__ import annotations

from pathlib import Path

import joblib
import psutil
import pytest

from service.settings import Settings
from service.training.parallel import NEED_BYTES, jobs_of, memory_left

GIB = 1 << 30
VERSIONS = {
    2: ("", "memory.max", "memory.current", "inactive_file"),
    1: ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


def container(folder: Path, version: int, *, limit: str, used: int, cached: int) -> Path:
    """The control files of a container of either version of cgroups."""
    below, limit_file, use_file, name = VERSIONS[version]
    place = folder / below
    place.mkdir(exist_ok=True)
    (place / limit_file).write_text(f"{limit}\n")
    (place / use_file).write_text(f"{used}\n")
    (place / "memory.stat").write_text(f"anon 1\n{name} {cached}\nother 2\n")
    return folder


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 cores and 100 GiB left."""
    monkeypatch.setattr(joblib, "cpu_count", lambda: 64)
    memory = psutil.virtual_memory()._replace(available=100 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


@pytest.mark.parametrize("version", [1, 2])
def test_a_containers_memory_bounds_them(tmp_path: Path, version: int) -> None:
    cgroup = container(tmp_path, version, limit=str(8 * GIB), used=5 * GIB, cached=2 * GIB)
    assert memory_left(cgroup) == 5 * GIB  # what is cached of files is given back when it is wanted
    chosen = jobs_of(Settings(), cgroup)
    assert (chosen.n, chosen.short_of_memory) == (5 * GIB // NEED_BYTES, True)
    assert chosen.why == "5.0 GiB of memory are left, 1 for each process, though 64 cores are there."


@pytest.mark.parametrize("version", [1, 2])
def test_one_trains_however_little_memory_is_left(tmp_path: Path, version: int) -> None:
    cgroup = container(tmp_path, version, limit=str(GIB), used=2 * GIB, cached=0)
    assert memory_left(cgroup) == 0
    assert jobs_of(Settings(), cgroup).n == 1


def test_without_a_limit_the_cores_decide(tmp_path: Path) -> None:
    cgroup = container(tmp_path, 2, limit="max", used=GIB, cached=0)
    assert memory_left(cgroup) == 100 * GIB
    chosen = jobs_of(Settings(), cgroup)
    assert (chosen.n, chosen.short_of_memory) == (64, False)
    assert chosen.why == "As many as cores that this process may use; 100.0 GiB of memory are left."
    assert jobs_of(Settings(), tmp_path / "none").n == 64


def test_what_the_operator_says_counts(tmp_path: Path) -> None:
    cgroup = container(tmp_path, 2, limit=str(GIB), used=0, cached=0)
    chosen = jobs_of(Settings(jobs=7), cgroup)
    assert (chosen.n, chosen.why) == (7, "EXPUNGE_JOBS is 7.")
