"""Margins: one number for each model and example, from which every other figure is computed, and banks of them.

The margin is the logit-scaled confidence of the true class (metric report, section on logit scaling)

    f = log p_y − log(1 − p_y) = z_y − logsumexp_{j≠y} z_j

computed from logits in closed form, which stays exact where `p_y` rounds to 1.
A bank is a float64 array `(n_models, n_examples)` of margins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from audit.errors import BankError, NotANumberError

Array = NDArray[np.float64]


def margins(logits: ArrayLike, labels: ArrayLike) -> Array:
    """Margin of the true class for every example.

    Args:
        logits: `(n_examples, n_classes)`, any float type; computed in float64.
        labels: int `(n_examples,)` in `[0, n_classes)`.

    Returns:
        float64 `(n_examples,)`; ±inf only where the logits themselves are infinite.

    Raises:
        BankError: wrong shapes, fewer than two classes, a label out of range.
        NotANumberError: a margin is not a number; names the example.
    """
    z = np.asarray(logits, dtype=np.float64)
    y = np.asarray(labels)
    if z.ndim != 2 or z.shape[1] < 2:
        raise BankError(f"Expected logits of shape (n_examples, n_classes >= 2), got {z.shape}.")
    if y.shape != z.shape[:1] or not np.issubdtype(y.dtype, np.integer):
        raise BankError(f"Expected one integer label for each of {z.shape[0]} examples, got {y.dtype} {y.shape}.")
    if y.size and (y.min() < 0 or y.max() >= z.shape[1]):
        raise BankError(f"Expected labels in [0, {z.shape[1] - 1}], got {y.min()} to {y.max()}.")
    rows = np.arange(z.shape[0])
    others = z.copy()
    others[rows, y] = -np.inf
    largest = others.max(axis=1)  # (n,)
    shift = np.where(np.isfinite(largest), largest, 0.0)  # avoids inf − inf
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        f = z[rows, y] - (shift + np.log(np.exp(others - shift[:, None]).sum(axis=1)))
    bad = np.flatnonzero(np.isnan(f))
    if bad.size:
        raise NotANumberError(
            f"The margin of example {bad[0]} is not a number: its logits are {z[bad[0]].tolist()}. "
            "The model's output is broken; do not audit it.",
            model=None,
            example=int(bad[0]),
        )
    return np.asarray(f, dtype=np.float64)


def as_bank(name: str, bank: ArrayLike, *, min_models: int = 2) -> Array:
    """The bank as float64 `(n_models, n_examples)`, checked.

    Raises:
        BankError: not two-dimensional, no example, fewer than `min_models` models.
        NotANumberError: a margin is NaN; names model and example.
    """
    values = np.asarray(bank, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 1:
        raise BankError(f"Expected {name} of shape (n_models, n_examples >= 1), got {values.shape}.")
    if values.shape[0] < min_models:
        raise BankError(f"Expected at least {min_models} models in {name}, got {values.shape[0]}.")
    _refuse_nan(name, values)
    return values


def as_banks(unlearned: ArrayLike, retrained: ArrayLike) -> tuple[Array, Array]:
    """Both banks, checked by `as_bank` and for equal numbers of examples."""
    u, r = as_bank("unlearned", unlearned), as_bank("retrained", retrained)
    if u.shape[1] != r.shape[1]:
        raise BankError(
            f"Expected banks of the same examples, got {u.shape[1]} in unlearned and {r.shape[1]} in retrained."
        )
    return u, r


def as_row(name: str, row: ArrayLike, n_examples: int) -> Array:
    """One model's margins as float64 `(n_examples,)`.

    Raises:
        BankError: another shape.
        NotANumberError: a margin is NaN.
    """
    values = np.asarray(row, dtype=np.float64)
    if values.shape != (n_examples,):
        raise BankError(f"Expected {name} of shape ({n_examples},), got {values.shape}.")
    _refuse_nan(name, values[None, :])
    return values


def _refuse_nan(name: str, values: Array) -> None:
    bad = np.argwhere(np.isnan(values))
    if bad.size:
        model, example = (int(index) for index in bad[0])
        raise NotANumberError(
            f"The margin of model {model} on example {example} in {name} is not a number "
            f"({len(bad)} such values). Find the model whose training diverged and leave it out.",
            model=model,
            example=example,
        )
