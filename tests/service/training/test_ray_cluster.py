"""Reference banks built on a real Ray cluster of two nodes, one of which is killed in the middle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service.banks.build import build_bank
from service.banks.file_format import BESIDE
from service.banks.store import BankStore
from service.errors import StartupError
from service.training.jobs import in_children, run_trial, run_trials
from service.training.ray_cluster import disconnect
from tests.service import tiny
from tests.waiting import wait_until
from unlearning.errors import ExitedError

ROOT = Path(__file__).parents[3]
N_MODELS = 10


def test_a_cluster_without_ray_says_what_to_install(tiny_context, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    settings = tiny_context.settings.model_copy(update={"cluster": "ray:auto"})
    plan = tiny.plan_for(tiny_context, tiny.people(tiny_context)[0])
    with pytest.raises(StartupError, match=r"pip install expunge\[ray\]"):
        next(run_trials(plan.spec, [0], settings))


def start_cluster(tries=5):
    """The cluster and its two nodes. Ray gives a node thirty seconds to start, which a busy machine may not have."""
    from ray.cluster_utils import Cluster

    here = {"object_store_memory": 80_000_000}
    for left in reversed(range(tries)):
        cluster = Cluster(head_node_args={})
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False, **here)
            return cluster, [cluster.add_node(num_cpus=1, **here) for _ in range(2)]
        except Exception:
            cluster.shutdown()
            if not left:
                raise
    raise AssertionError("Expected at least one try.")


@pytest.fixture
def cluster(monkeypatch):
    """A head that trains nothing and two nodes of one processor each; ends with the test."""
    pytest.importorskip("ray", reason="Needs Ray: run pip install -e '.[dev]'.")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_agent_register_timeout_ms", "120000")
    cluster, nodes = start_cluster()
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    try:
        yield cluster, nodes
    finally:
        disconnect()
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(1200)
def test_a_bank_is_complete_though_a_node_died(tiny_context, cluster):
    ray_cluster, nodes = cluster
    settings = tiny_context.settings.model_copy(update={"cluster": "ray:auto"})
    a, _ = tiny.same_block(tiny_context)
    plan, store = tiny.plan_for(tiny_context, a), BankStore(settings.banks_folder)
    told, stored = [], []
    add = store.add
    store.add = lambda key, row, **kept: stored.append((key.statistic, row.seed)) or add(key, row, **kept)

    def watch(done, wanted):
        told.append(done)
        if done == 3:
            ray_cluster.remove_node(nodes[0], allow_graceful=False)

    bank = build_bank(store, plan, N_MODELS, settings, watch, now=tiny_context.now())
    assert told == list(range(N_MODELS + 1))
    kinds = {plan.key.statistic, *BESIDE}
    assert sorted(stored) == sorted((kind, seed) for kind in kinds for seed in range(N_MODELS))  # none lost, none twice
    assert bank.seeds.tolist() == list(range(N_MODELS))
    for seed in (0, N_MODELS - 1):  # as if it had been trained here
        np.testing.assert_array_equal(bank.margins[seed], run_trial(plan.spec, seed).margins)


def leave(log: Path) -> str:
    """Calls `sys.exit`, as code that is not ours may; ends the test if it is called again and again."""
    with log.open("a") as file:
        file.write("called\n")
    if log.read_text().count("called") > 2:
        return "called again and again"
    raise SystemExit(0)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_task_that_exits_is_an_error_here(tiny_context, tmp_path, jobs):
    settings = tiny_context.settings.model_copy(update={"jobs": jobs})
    with pytest.raises(ExitedError, match=r"called sys\.exit"):
        list(in_children(leave, [(tmp_path / "log",)], settings))


class ShapeError(Exception):
    """Of code that is not ours; pickle cannot make it anew from its message."""

    def __init__(self, expected: int, given: int) -> None:
        super().__init__(f"expected {expected}, got {given}")


def misfit(_log: Path) -> None:
    raise ShapeError(3, 4)


@pytest.mark.parametrize("jobs", [1, 2])
def test_an_error_that_cannot_be_sent_says_what_it_was(tiny_context, tmp_path, jobs):
    settings = tiny_context.settings.model_copy(update={"jobs": jobs})
    with pytest.raises(RuntimeError, match="ShapeError: expected 3, got 4"):
        list(in_children(misfit, [(tmp_path / "log",)], settings))
    assert list(in_children(len, [((1, 2),)], settings)) == [2]


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(1200)
def test_a_task_that_exits_is_an_error_on_a_cluster_and_is_not_repeated(tiny_context, tmp_path, cluster):
    settings = tiny_context.settings.model_copy(update={"cluster": "ray:auto"})
    log = tmp_path / "log"
    with pytest.raises(ExitedError, match=r"called sys\.exit"):
        list(in_children(leave, [(log,)], settings))
    assert log.read_text().count("called") == 1
    with pytest.raises(RuntimeError, match="ShapeError: expected 3, got 4"):
        list(in_children(misfit, [(log,)], settings))


def whose(folder: Path) -> str:
    """Where a task ran; it waits for one on the other node."""
    import ray

    node = str(ray.get_runtime_context().get_node_id())
    (folder / node).touch()
    wait_until(lambda: len(list(folder.iterdir())) == 2, "a task on each of the two nodes")
    return node


def fails() -> None:
    raise ValueError("a trial that fails by itself")


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(1200)
def test_both_nodes_work_and_a_failure_is_an_error(tiny_context, cluster, tmp_path):
    from service.training.jobs import in_children

    settings = tiny_context.settings.model_copy(update={"cluster": "ray:auto"})
    (tmp_path / "nodes").mkdir()
    assert len(set(in_children(whose, [(tmp_path / "nodes",)] * 8, settings))) == 2
    with pytest.raises(ValueError, match="fails by itself"):
        list(in_children(fails, [()], settings))
