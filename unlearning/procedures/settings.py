"""What settings of methods have in common: frozen, validated when made, in plain values that JSON can hold.

A field's range or choices stand in its declaration (`ranged`, `choice`), so that validation, tests and a search
over settings read the same bounds. The one field every method has is `recipe`: the recipe that made the original
model, from which a method takes augmentation and arithmetic (and exact retraining everything). `unlearn` fills it
in.
"""

import dataclasses
import math
from typing import Any, Self, TypeVar

from unlearning.errors import MethodError
from unlearning.recipes import Recipe

S = TypeVar("S", bound="Settings")
SCHEDULES = ("constant", "cosine", "one-cycle")


def ranged(default: Any, low: float, high: float) -> Any:
    """Declares a number, or a non-empty tuple of numbers, in [low, high]."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


def choice(default: str, *options: str) -> Any:
    """Declares one of several words."""
    return dataclasses.field(default=default, metadata={"choices": options})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of all settings.

    Attributes:
        recipe: the original model's recipe; None means images as they are and float32 arithmetic.
    """

    recipe: Recipe | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, tuple) and isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            self._check(field, value)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> Self:
        """Returns settings of plain values by name.

        Raises:
            MethodError: an unknown name, or a value of the wrong type or out of its range.
        """
        unknown = sorted(set(options) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise MethodError(f"{cls.__name__} has no {unknown}; expected {sorted(cls().to_dict())}.")
        return cls(**options)

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings as plain values, without the recipe; `from_dict` reads them back."""
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del options["recipe"]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}

    def _check(self, field: "dataclasses.Field[Any]", value: Any) -> None:
        options = field.metadata.get("choices")
        if options is not None and value not in options:
            raise MethodError(f"{type(self).__name__}: expected {field.name} in {options}, got {value!r}.")
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise MethodError(f"{type(self).__name__}: expected {field.name} to be true or false, got {value!r}.")
        bounds = field.metadata.get("range")
        if bounds is None:
            return
        low, high = bounds
        values = value if isinstance(field.default, tuple) else (value,)
        if not isinstance(values, tuple) or not values:
            raise MethodError(f"{type(self).__name__}: expected {field.name} as one or more numbers, got {value!r}.")
        whole = isinstance(field.default, int)
        for number in values:
            if isinstance(number, bool) or not isinstance(number, int if whole else (int, float)):
                kind = "a whole number" if whole else "a number"
                raise MethodError(f"{type(self).__name__}: expected {field.name} to be {kind}, got {number!r}.")
            if not (math.isfinite(number) and low <= number <= high):
                raise MethodError(f"{type(self).__name__}: expected {field.name}={number} in [{low}, {high}].")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ApproximateSettings(Settings):
    """Settings of methods that start from the original, with two finishing steps, off by default.

    Attributes:
        settle: take the statistics of batch norms anew from the retain set once the method is done.
        confidence: how far the classifier is then rescaled so that the median margin on the retain set is the
            original's: 0 not at all, 1 all the way, between them in proportion on a logarithmic scale.
    """

    settle: bool = False
    confidence: float = ranged(0.0, 0.0, 1.0)


def bound_to(settings: S, recipe: Recipe) -> S:
    """Returns the settings with `recipe` filled in."""
    return dataclasses.replace(settings, recipe=recipe)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DescentSettings(ApproximateSettings):
    """Settings of methods that descend on batches; each method sets its own defaults.

    Attributes:
        epochs: passes over the examples; a fraction ends within a pass.
        learning_rate: the highest of the schedule.
        momentum: of SGD, or the first moment of Adam.
        weight_decay: added to the gradients of kernels and matrices, not of norms and biases, as our training does;
            the authors decay all.
        batch_size: examples a step, split evenly over an epoch as `unlearning.training.batches` does.
        schedule: "constant", "cosine" per step from `learning_rate` to 0, or "one-cycle": a fifth of the steps up to
            `learning_rate`, then cosine to 0.
    """

    epochs: float = ranged(1.0, 0.0, 1_000.0)
    learning_rate: float = ranged(1e-3, 0.0, 10.0)
    momentum: float = ranged(0.9, 0.0, 0.9999)
    weight_decay: float = ranged(0.0, 0.0, 1.0)
    batch_size: int = ranged(64, 2, 65_536)
    schedule: str = choice("constant", *SCHEDULES)
