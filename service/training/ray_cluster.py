"""Trials on a Ray cluster: the same interface as the child processes of this machine (`service.training.jobs`).

`EXPUNGE_CLUSTER` is `ray://HOST:10001` (Ray Client) or `ray:auto` (this machine is a node, or `RAY_ADDRESS` is set).
Each trial is one task on one CPU, or on a part of a GPU where the device is CUDA: `EXPUNGE_JOBS` of them (by default
eight) train at once on each. A task whose node is lost is run again on
another, any number of times; a trial that fails by itself is an error as on one machine. Results come back to the
caller, who alone writes the bank: a model is there once or not at all, however often its task ran.

Every node must see the home folder under the same path (a shared volume). Images are not sent through Ray's object
store: it spills to the nodes' disks, where no erasure would find them.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from service.errors import StartupError
from service.settings import Settings
from unlearning.errors import staying

T = TypeVar("T")

MODELS_A_GPU = 8  # unless EXPUNGE_JOBS says otherwise; small models leave most of a GPU idle
_AHEAD = 2  # tasks asked for, per slot of the cluster


def on_cluster(task: Callable[..., T], calls: Iterable[tuple[Any, ...]], settings: Settings) -> Iterator[T]:
    """What `task(*call)` gives for each call, as they finish, from tasks of the cluster.

    Raises:
        StartupError: Ray is not installed, the cluster does not answer, or has nothing that could run a trial.
    """
    ray = connect(settings)
    gpu = settings.device != "cpu" and ray.cluster_resources().get("GPU", 0) > 0
    kind, at_once = ("GPU", settings.jobs or MODELS_A_GPU) if gpu else ("CPU", 1)
    remote = ray.remote(num_cpus=0 if gpu else 1, num_gpus=1 / at_once if gpu else 0, max_retries=-1)(_run)
    waiting: list[Any] = []
    ended = False
    remaining = iter(calls)
    try:
        while not ended or waiting:
            slots = max(1, int(ray.cluster_resources().get(kind, 0) * at_once))
            while not ended and len(waiting) < _AHEAD * slots:
                call = next(remaining, None)
                if call is None:
                    ended = True
                else:
                    waiting.append(remote.remote(task, call))
            if waiting:
                done, waiting = ray.wait(waiting, num_returns=1)
                yield ray.get(done[0])
    finally:
        for unfinished in waiting:
            ray.cancel(unfinished, force=True)


def connect(settings: Settings) -> Any:
    """The `ray` module, connected to the cluster."""
    try:
        import ray
    except ImportError as error:
        raise StartupError(
            f"Expected Ray for EXPUNGE_CLUSTER={settings.cluster}; install it with `pip install expunge[ray]`."
        ) from error
    if not ray.is_initialized():
        address = "auto" if settings.cluster == "ray:auto" else settings.cluster
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError) as error:
            raise StartupError(
                f"Expected a Ray cluster at EXPUNGE_CLUSTER={settings.cluster}: {error}. "
                "Start one with `ray start --head`."
            ) from error
    return ray


def disconnect() -> None:
    """End this process's part in the cluster; its tasks are cancelled, and the processes that ran them end."""
    import sys

    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()


def _run(task: Callable[..., T], call: tuple[Any, ...]) -> T:
    """In a process of a node: one thread, the lowest priority."""
    import torch

    torch.set_num_threads(1)
    os.nice(19 - os.nice(0))
    return result_of(task, call)


def result_of(task: Callable[..., T], call: tuple[Any, ...]) -> T:
    """What the task gives.

    Raises:
        ExitedError: the task called `sys.exit`. Ray would take it for a lost node and repeat the task for ever.
        RuntimeError: the task raised an error that pickle cannot make anew, say of a class whose arguments are not
            its message. It would arrive as a failure of the pool or of Ray, without what it said.
    """
    try:
        with staying():
            return task(*call)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301
        except Exception:
            raise RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__) from error
        raise
