"""Unlearning methods: functions from a trained model, a forget set and a retain set to an unlearned model.

A method is a function `(model, forget, retain, *, settings, seed, device) -> model`, one file each. `METHODS` lists
them and `unlearn` runs one with its cost counted. Adding a method is a file and a line in `unlearning.registry`; the
contract tests find it.

The names below are imported on first use, because the registry imports this package's modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unlearning.procedures.cost import Cost
    from unlearning.procedures.settings import Settings
    from unlearning.registry import METHODS, Method, find_method
    from unlearning.running import Unlearned, settings_for, unlearn
    from unlearning.tuned import tuned_record

__all__ = [
    "METHODS",
    "Cost",
    "Method",
    "Settings",
    "Unlearned",
    "find_method",
    "settings_for",
    "tuned_record",
    "unlearn",
]

_MODULES = {
    "METHODS": "registry",
    "Cost": "procedures.cost",
    "Method": "registry",
    "Settings": "procedures.settings",
    "Unlearned": "running",
    "find_method": "registry",
    "settings_for": "running",
    "tuned_record": "tuned",
    "unlearn": "running",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'unlearning.methods' has no attribute {name!r}")
    return getattr(import_module(f"unlearning.{_MODULES[name]}"), name)
