"""Networks from elsewhere: a factory of your own by its import path, or one of timm's by name.

`mypackage.models:build` is called as `build(n_classes=…, channels=…)` and returns a `torch.nn.Module` with random
weights, which gives logits `(n, n_classes)` of inputs `(n, channels, height, width)`. `timm:resnet18` is that model of
timm, if it is installed.

Weights alone do not say what a network computes, so recipes and manifests also hold the `source` of the code: the
digest of the factory's module, or timm's version. torch is not imported here before a network is made.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from unlearning.errors import RecipeError, staying

if TYPE_CHECKING:
    from torch import nn

TIMM = "timm:"
_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_from_elsewhere(architecture: str) -> bool:
    """Whether a name is spelt like one of this module, whatever there is of it."""
    return ":" in architecture


def is_factory(architecture: str) -> bool:
    """Whether a name is an import path."""
    return is_from_elsewhere(architecture) and not architecture.startswith(TIMM)


@cache  # what a process has imported stays as it was, so its digest does too
def source_of(architecture: str) -> str:
    """What code a network is made by: `sha256:…` of a factory's module, `timm 1.0.31`; empty for all other names.

    Of a module that is a package, every Python file in it counts. What either imports from elsewhere does not.

    Raises:
        RecipeError: there is no such module, or only a compiled one; timm is not installed, or lacks the model.
    """
    if not is_from_elsewhere(architecture):
        return ""
    if architecture.startswith(TIMM):
        return _timm_version(architecture.removeprefix(TIMM))
    digest = hashlib.sha256()
    for name, path in _source_files(architecture):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return f"sha256:{digest.hexdigest()}"


def require_source(architecture: str, source: str) -> None:
    """Nothing, if the network is made by the same code as when its source was taken.

    Raises:
        RecipeError: by other code, or none; as `source_of`.
    """
    found = source_of(architecture)
    if found == source:
        return
    code = architecture if architecture.startswith(TIMM) else "the module of " + architecture
    raise RecipeError(
        f"Expected {code} as it was trained with ({source}), found {found}: put it back as it was, or train a new "
        "model."
    )


def make(architecture: str, n_classes: int, channels: int) -> nn.Module:
    """A fresh network of this name.

    Raises:
        RecipeError: as `source_of`; the module cannot be imported, has no such function, or the function fails or
            returns something else.
    """
    source_of(architecture)
    if architecture.startswith(TIMM):
        import timm

        model: nn.Module = timm.create_model(
            architecture.removeprefix(TIMM), pretrained=False, num_classes=n_classes, in_chans=channels
        )
        return model
    return _call_factory(architecture, n_classes, channels)


def _call_factory(architecture: str, n_classes: int, channels: int) -> nn.Module:
    from torch import nn

    name, _, function = architecture.partition(":")
    try:
        with staying():
            build = getattr(importlib.import_module(name), function)
            model = build(n_classes=n_classes, channels=channels)
    except Exception as error:  # it is the user's code
        raise RecipeError(
            f"Expected {architecture} to give a network for (n_classes={n_classes}, channels={channels}), but "
            f"{type(error).__name__}: {error}."
        ) from error
    if not isinstance(model, nn.Module) or not any(True for _ in model.parameters()):
        raise RecipeError(
            f"Expected {architecture} to return a torch.nn.Module with parameters, got {type(model).__name__}."
        )
    return model


def _source_files(architecture: str) -> list[tuple[str, Path]]:
    """Python files of a factory's module, each with its name relative to the module."""
    if not _FACTORY.fullmatch(architecture):
        raise RecipeError(
            f"Expected an architecture like mypackage.models:build, a function's import path, got {architecture!r}."
        )
    module = architecture.partition(":")[0]
    try:
        with staying():
            spec = find_spec(module)
    except ModuleNotFoundError:
        spec = None
    except Exception as error:  # a parent package that cannot be imported raises anything
        raise RecipeError(f"Expected to import {module}, but {type(error).__name__}: {error}.") from error
    if spec is None:
        raise RecipeError(
            f"Expected a Python module {module}, found none; install it beside Expunge, or name its folder, by an "
            "absolute path, in PYTHONPATH for every process of the service."
        )
    if spec.submodule_search_locations is not None:
        folders = [Path(folder) for folder in spec.submodule_search_locations]
        files = sorted(
            (file.relative_to(folder).as_posix(), file) for folder in folders for file in folder.rglob("*.py")
        )
    else:
        files = [("", Path(spec.origin))] if spec.origin is not None and spec.origin.endswith(".py") else []
    if not files:
        raise RecipeError(f"Expected Python source of the module {module}, whose digest is in recipes; found none.")
    return files


def _timm_version(model: str) -> str:
    try:
        installed = version("timm")
    except PackageNotFoundError as error:
        raise RecipeError(f"{TIMM}{model} needs timm; install expunge[timm].") from error
    import timm

    if not timm.is_model(model):
        raise RecipeError(f"Expected a model of timm {installed} (`timm.list_models()`), got {model!r}.")
    return f"timm {installed}"
