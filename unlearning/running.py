"""Runs a method: chooses its settings, checks the sets and the result, and counts the cost."""

import copy
import dataclasses
from pathlib import Path

import torch
from torch import nn

from unlearning.devices import resolve_device, stopwatch
from unlearning.errors import MethodError, staying
from unlearning.procedures.cost import Cost, metered
from unlearning.procedures.finishing import finish
from unlearning.procedures.modules import layout
from unlearning.procedures.settings import ApproximateSettings, Settings, bound_to
from unlearning.recipes import Recipe
from unlearning.registry import METHODS, Method, find_method
from unlearning.training import Examples
from unlearning.tuned import tuned_settings


@dataclasses.dataclass(frozen=True)
class Unlearned:
    """Result of a run: a model in eval mode with finite float32 weights, and the cost."""

    model: nn.Module
    cost: Cost


def settings_for(name: str, recipe: Recipe, file: Path | None = None) -> Settings:
    """Returns the default settings of `unlearn` for a recipe: tuned ones if there are any, else the authors'.

    Args:
        file: further tuned settings, see `tuned_record`.
    """
    return tuned_settings(name, find_method(name).settings, recipe, file)


def undefined(model: nn.Module, recipe: Recipe, file: Path | None = None) -> dict[str, str]:
    """Returns the methods that are not defined for a network with their settings for a recipe, each with the reason.

    The network is neither run nor changed. A method that is defined may still fail on a network, or be of no use.

    Args:
        file: as for `settings_for`.
    """
    found: dict[str, str] = {}
    for name, method in METHODS.items():
        settings = settings_for(name, recipe, file)
        try:
            method.needs(model, settings)
            if isinstance(settings, ApproximateSettings) and settings.confidence > 0.0:
                layout(model)  # whose classifier is scaled
        except MethodError as error:
            found[name] = str(error)
    return found


@staying()
def unlearn(
    name: str,
    model: nn.Module,
    forget: Examples | None,
    retain: Examples,
    *,
    recipe: Recipe,
    seed: int,
    device: str | torch.device = "auto",
    settings: Settings | None = None,
) -> Unlearned:
    """Runs a method and the finishing steps of its settings, and counts the cost of both.

    The model, the examples and the caller's random state do not change.

    Args:
        forget: what to forget; None only for methods that do not read it.
        recipe: of the original model; augmentation and arithmetic are taken from it.
        settings: None for `settings_for(name, recipe)`; their recipe is replaced by `recipe`.

    Raises:
        MethodError: unknown method, settings of another method, empty sets, a missing forget set, or a result that is
            not a finite float32 model of the same architecture.
        ExitedError: the code of the method or the network called `sys.exit`.
    """
    method = find_method(name)
    if settings is not None and type(settings) is not method.settings:
        raise MethodError(f"{name}: expected {method.settings.__name__}, got {type(settings).__name__}.")
    chosen = settings_for(name, recipe) if settings is None else bound_to(settings, recipe)
    _check_sets(name, method, forget, retain)
    where = resolve_device(device)
    started = stopwatch(where)
    original = copy.deepcopy(model).to(where).eval()
    with metered(original) as meter:
        result = method.function(
            original,
            forget.to(where) if forget is not None else None,
            retain.to(where),
            settings=chosen,
            seed=seed,
            device=where,
        )
        if isinstance(chosen, ApproximateSettings):
            finish(result, original, retain.to(where), settings=chosen, seed=seed, device=where)
        meter.detach(result)
    _release(result)
    cost = Cost(meter.n_forward, meter.n_backward, stopwatch(where) - started)
    _check_result(name, result, model)
    return Unlearned(result, cost)


def _release(result: nn.Module) -> None:
    """Brings a network out of training: eval mode, every parameter trainable, in its own memory, without gradient."""
    result.eval().requires_grad_(True)
    for parameter in result.parameters():
        parameter.data = parameter.data.clone(memory_format=torch.preserve_format)
        parameter.grad = None


def _check_sets(name: str, method: Method, forget: Examples | None, retain: Examples) -> None:
    if forget is None and method.needs_forget:
        raise MethodError(f"{name} reads the forget set, but none was given; pass it or choose a method without.")
    if forget is not None and len(forget) == 0:
        raise MethodError(f"{name}: expected at least one example to forget, got an empty forget set.")
    if len(retain) == 0:
        raise MethodError(f"{name}: expected at least one example to retain, got an empty retain set.")


def _check_result(name: str, result: nn.Module, original: nn.Module) -> None:
    expected, got = original.state_dict(), result.state_dict()
    if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in got.items()}:
        raise MethodError(f"{name} changed the architecture; expected the original's tensors and shapes.")
    for key, value in got.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise MethodError(f"{name}: expected float32 weights, got {value.dtype} in {key}.")
        if not bool(torch.isfinite(value).all()):
            raise MethodError(f"{name} diverged: {key} has values that are not finite; lower its learning rates.")
