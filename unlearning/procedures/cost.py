"""Cost of a method's run: examples passed forward and backward, and seconds.

Seconds are processor time of the process, so that a cost does not depend on what else the machine does; only on CUDA,
where the processor waits for another device, they are wall-clock time. A *share of retraining* is the median seconds
of the method's runs over the median seconds of trainings from scratch on the retain set, timed the same way.

A `Meter` is a hook on the network a method is given. Every deep copy has it too (teachers, students,
originals kept for comparison), so all passes of all of them are counted, whatever loop the method writes. A pass
over n images counts n forward; it counts n backward when a gradient comes back through its output, once for every
time it does. Networks that a method builds elsewhere (exact retraining) report their own count through `report`.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Cost:
    """Cost of one unlearning run.

    Attributes:
        n_forward: examples that passed forward through any of the run's networks.
        n_backward: examples for which a gradient passed backward.
        seconds: of the run, the copy of the original included, by `unlearning.devices.stopwatch`: processor time, on
            CUDA wall-clock time.
    """

    n_forward: int
    n_backward: int
    seconds: float


class Meter:
    """Counts one run's passes."""

    def __init__(self) -> None:
        self.n_forward = 0
        self.n_backward = 0

    def attach(self, model: nn.Module) -> None:
        """Starts counting passes through `model` and its future copies."""
        meter = self  # closures are shared by deep copies, bound methods would be copied with their meter

        def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            n = len(inputs[0])
            meter.n_forward += n
            if isinstance(output, torch.Tensor) and output.requires_grad:

                def count_backward(gradient: torch.Tensor) -> None:
                    meter.n_backward += n

                output.register_hook(count_backward)

        model.register_forward_hook(count)

    def detach(self, model: nn.Module) -> None:
        """Removes the hook from a network, original or copy."""
        for key, hook in list(model._forward_hooks.items()):
            if getattr(hook, "__qualname__", "").startswith("Meter.attach."):
                del model._forward_hooks[key]


_running: ContextVar[Meter | None] = ContextVar("running_meter", default=None)


def report(*, n_forward: int, n_backward: int) -> None:
    """Adds passes that the hooks do not count to the run in progress, if there is one."""
    meter = _running.get()
    if meter is not None:
        meter.n_forward += n_forward
        meter.n_backward += n_backward


@contextlib.contextmanager
def metered(model: nn.Module) -> Iterator[Meter]:
    """Within the block passes through `model` and its copies are counted; `model` is left without hooks."""
    meter = Meter()
    token = _running.set(meter)
    meter.attach(model)
    try:
        yield meter
    finally:
        meter.detach(model)
        _running.reset(token)
