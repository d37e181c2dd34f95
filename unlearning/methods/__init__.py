"""Unlearning methods: a trained model, a forget set and a retain set in; a model that should have forgotten out.

A method is a function `(model, forget, retain, *, settings, seed, device) -> model`, one file each. `METHODS` lists
them and `unlearn` runs one with its cost counted. Adding a method is a file and a line; the contract tests find it.
"""

from unlearning.methods.cost import Cost
from unlearning.methods.registry import METHODS, Method, find_method
from unlearning.methods.running import Unlearned, settings_for, unlearn
from unlearning.methods.settings import Settings
from unlearning.methods.tuned import tuned_record

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
